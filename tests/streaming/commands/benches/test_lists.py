"""The fixed lists: the same requests as wherever else they were measured."""

from __future__ import annotations

import hashlib

import msgspec

from jitney.streaming.commands.benches.lists import LISTS, drawn

MIXED_IN = 148194
MIXED_OUT = 140797
MIXED_SHA256 = "223735a1d80d69685a6f9c5a483696a44e9d1e2937a0e5e7520ea6551674812f"


def test_their_lengths() -> None:
    totals = {
        name: (len(lengths), sum(p for p, _ in lengths), sum(o for _, o in lengths))
        for name, lengths in LISTS.items()
    }
    assert totals == {
        "mixed256": (256, MIXED_IN, MIXED_OUT),
        "b1": (1, 128, 256),
        "b8": (8, 1024, 2048),
        "b32": (32, 32768, 8192),
        "b64": (64, 65536, 16384),
        "1k1k256": (256, 262144, 262144),
        "prefill8k": (16, 131072, 16),
    }  # fmt: skip
    assert min(min(pair) for pair in LISTS["mixed256"]) >= 100
    assert max(max(pair) for pair in LISTS["mixed256"]) <= 1024


def test_their_tokens() -> None:
    prompts = drawn(LISTS["mixed256"], 151936)
    assert [len(prompt) for prompt in prompts] == [prompt for prompt, _ in LISTS["mixed256"]]
    assert hashlib.sha256(msgspec.json.encode(prompts)).hexdigest() == MIXED_SHA256


def test_a_small_vocabulary_is_drawn_from_whole() -> None:
    assert {token for prompt in drawn([(500, 1)], 20) for token in prompt} == set(range(20))
