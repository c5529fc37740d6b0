"""The draw from weights in order of id, and which of a row's logits a cut keeps."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import uniform
from .row_words import CHOICE, SEED_HIGH, SEED_LOW, row_word


@triton.jit
def point_of(words, slot, position, total):
    """The row's uniform number times its total weight."""
    seed_low, seed_high = row_word(words, slot, SEED_LOW), row_word(words, slot, SEED_HIGH)
    return uniform(seed_low, seed_high, row_word(words, slot, CHOICE), position) * total


@triton.jit
def first_above(running, parts, point, at):
    """The first place whose running sum exceeds the point, and never past the last part that weighs anything."""
    last = tl.max(tl.where(parts > 0, at, 0), axis=0)
    return tl.minimum(tl.sum(tl.where(running <= point, 1, 0), axis=0), last)


@triton.jit
def kept_of(values, low, edge, limit):
    """All at or above `edge`, and the first `limit` of those between `low` and it, which are equals."""
    equals = (values < edge) & (values >= low)
    return (values >= edge) | (equals & (tl.cumsum(tl.where(equals, 1, 0), axis=0) <= limit))
