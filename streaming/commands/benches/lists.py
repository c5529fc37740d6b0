"""Fixed lists of requests, as prompt and answer lengths: the same for every engine, here and elsewhere."""

from __future__ import annotations

import random

SEED = 1
LEAST_ID, MOST_ID = 300, 120_000
"""Token ids are drawn between these, where vocabularies have plain words."""

Lengths = list[tuple[int, int]]


def _mixed(count: int, low: int, high: int) -> Lengths:
    draw = random.Random(0)
    return [(draw.randint(low, high), draw.randint(low, high)) for _ in range(count)]


LISTS: dict[str, Lengths] = {
    "mixed256": _mixed(256, 100, 1024),
    "b1": [(128, 256)],
    "b8": [(128, 256)] * 8,
    "b32": [(1024, 256)] * 32,
    "b64": [(1024, 256)] * 64,
    "1k1k256": [(1024, 1024)] * 256,
    "prefill8k": [(8192, 1)] * 16,
}


def drawn(lengths: Lengths, vocab_size: int, seed: int = SEED) -> list[list[int]]:
    """Prompts of these lengths."""
    draw, most = random.Random(seed), min(vocab_size, MOST_ID)
    least = LEAST_ID if most > LEAST_ID else 0
    return [[draw.randrange(least, most) for _ in range(prompt)] for prompt, _ in lengths]
