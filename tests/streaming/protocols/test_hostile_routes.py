"""Bodies changed at random, at Megatron's routes, tokenize and detokenize: a clear refusal and never another error."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from jitney.runtime.errors import RequestError
from jitney.runtime.testing import ByteTokenizer
from jitney.streaming.protocols.errors import refusal
from jitney.streaming.protocols.fields import parse
from jitney.streaming.protocols.legacy_completions import LegacyCompletion
from jitney.streaming.protocols.megatron import FIELDS, MegatronApi
from jitney.streaming.protocols.tokenizing import detokenize, tokenize

ODD = [
    None,
    True,
    0,
    -1,
    2**63,
    10**40,
    1.5,
    1e308,
    "",
    "\x00",
    "é" * 300,
    [],
    [[]],
    {},
    {"": {}},
    [None],
    ["x"],
]
SEEDS: list[dict[str, Any]] = [
    {"prompts": ["a", "b"], "tokens_to_generate": 3, "top_p": 0.5, "top_p_decay": 0.5},
    {"prompts": ["a"], "logprobs": True, "tokens_to_generate": 0, "random_seed": 5, "stop_on_eol": True},
    {"prompt": ["a", [1, 2]], "max_tokens": 0, "echo": True, "logprobs": 3, "seed": 4},
    {"prompt": "x", "add_special_tokens": False},
    {"messages": [{"role": "user", "content": "x"}], "return_token_strs": True},
    {"tokens": [1, 2, 3], "model": "m"},
]


def decode(raw: bytes) -> None:
    MegatronApi(raw, ByteTokenizer())


def both_ways(raw: bytes) -> None:
    body = parse(raw)
    (detokenize if "tokens" in body else lambda *a, **k: tokenize(body, "m").content())(
        body, "m", vocab_size=300, max_tokens=100
    )


@pytest.mark.parametrize("seed", range(4))
def test_mutated_bodies(seed: int) -> None:
    rng = random.Random(seed)
    taken = 0
    for _ in range(2500):
        body = dict(rng.choice(SEEDS))
        for _ in range(rng.randrange(1, 3)):
            body[rng.choice([*body, *FIELDS])] = rng.choice(ODD)
        raw = msgspec.json.encode(body)
        if rng.random() < 0.3:
            at = rng.randrange(len(raw))
            raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
        for protocol in (decode, lambda raw: LegacyCompletion(raw, "m"), both_ways):
            try:
                protocol(raw)
                taken += 1
            except RequestError as exc:
                refused = refusal(exc)
                assert 400 <= refused.status < 500 and refused.message
                msgspec.json.decode(refused.body())
    assert taken
