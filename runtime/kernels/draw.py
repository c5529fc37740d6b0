"""The draw from weights in order of id, which of a row's logits a cut keeps, and what makes a draw impossible."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import uniform
from .row_words import CHOICE, SEED_HIGH, SEED_LOW, row_word
from .search import weight


@triton.jit
def scanned(peaks, sums, row, scale, num_blocks, BLOCKS: tl.constexpr):
    """What a scan of a random row found: by block the peak, the row's peak, and by block what it weighs, float32."""
    at = tl.arange(0, BLOCKS)
    peak_of = tl.load(peaks + row * num_blocks + at, mask=at < num_blocks, other=float("-inf"))
    sum_of = tl.load(sums + row * num_blocks + at, mask=at < num_blocks, other=0.0)
    peak = tl.max(peak_of, axis=0)
    return peak_of, peak, tl.where(peak_of > float("-inf"), sum_of * weight(peak_of, peak, scale), 0.0)


@triton.jit
def fault_of(peak_of, peak):
    """A row's flag: see `row_words`."""
    is_nan = tl.max(tl.where(peak_of != peak_of, 1, 0), axis=0)
    other = tl.where(peak == float("-inf"), 2, tl.where(peak == float("inf"), 3, 0))
    return tl.where(is_nan > 0, 1, other)


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
