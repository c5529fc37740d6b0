"""Lists of a row's highest logits, from what is known of its parts, and the order of a short list.

A part is a run of ids (128, say) of which a scan knows the peak. If k parts peak at or above a logit, k tokens lie
there, so the k likeliest do; only parts with a peak above need to be read to list them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .marks import read
from .search import LARGEST, pick, weight

STEPS = tl.constexpr(16)
ROUNDS = tl.constexpr(2)
MOST_PARTS = tl.constexpr(256)
PAIRED = tl.constexpr(32)


@triton.jit
def lowest_peak(part_peak):
    return tl.min(tl.where(part_peak > float("-inf"), part_peak, LARGEST), axis=0)


@triton.jit
def steps_between(bottom, top):
    return bottom + (top - bottom) * (tl.arange(0, STEPS).to(tl.float32) / (STEPS - 1))


@triton.jit
def narrowed(bottom, top, steps, allowed):
    """The steps around the last that is allowed: those from the lowest on are, up to some."""
    n = tl.maximum(tl.sum(tl.where(allowed, 1, 0), axis=0) - 1, 0)
    return pick(steps, n), tl.where(n < STEPS - 1, pick(steps, n + 1), top)


@triton.jit
def bound_by_count(part_peak, bottom, top, count):
    """A logit near the highest with `count` peaks at or above it; `bottom` where it has fewer itself."""
    for _ in tl.static_range(ROUNDS):
        steps = steps_between(bottom, top)
        above = part_peak[None, :] >= steps[:, None]
        bottom, top = narrowed(bottom, top, steps, tl.sum(tl.where(above, 1, 0), axis=1) >= count)
    return bottom


@triton.jit
def listed(
    logits, words, slot, mode, marks, biases, position, vocab, least, part_peak, active, values_out, ids_out,
    ADJUST: tl.constexpr, PART: tl.constexpr, ALL_PARTS: tl.constexpr, MOST: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """List a row's logits that are not below `least`, with their ids, in order of id; gives how many there are, more
    than `MOST` where they do not fit. `active`: scratch for a number of each part."""
    part = tl.arange(0, ALL_PARTS)
    is_active = (part_peak >= least) & (part_peak > float("-inf"))
    order = tl.cumsum(tl.where(is_active, 1, 0), axis=0)
    num_active = tl.max(order, axis=0)
    count = tl.where(num_active > MOST_PARTS, MOST + 1, 0)
    tl.store(active + order - 1, part, mask=is_active)
    tl.debug_barrier()
    first = 0
    while (first < num_active) & (count <= MOST):
        at = tl.arange(0, CHUNK)
        is_in = first + at // PART < num_active
        ids = tl.load(active + first + at // PART, mask=is_in, other=0) * PART + at % PART
        values = read(
            logits, ids, is_in & (ids < vocab), words, slot, mode, marks, biases, position, vocab, ADJUST
        )
        keep = (values >= least) & (values > float("-inf"))
        place = count + tl.cumsum(tl.where(keep, 1, 0), axis=0)
        tl.store(values_out + place - 1, values, mask=keep & (place <= MOST))
        tl.store(ids_out + place - 1, ids, mask=keep & (place <= MOST))
        count = tl.max(place, axis=0)
        first += CHUNK // PART
    tl.debug_barrier()
    return count


@triton.jit
def ranked(values, num, peak, scale, SIZE: tl.constexpr):
    """Of a list in order of id: the values, -inf past the end; how many come before each by falling value and rising
    id; and what these weigh."""
    i = tl.arange(0, SIZE)
    here = tl.load(values + i, mask=i < num, other=float("-inf"))
    rank = i * 0
    mass = rank.to(tl.float32)
    for start in range(0, num, PAIRED):
        j = start + tl.arange(0, PAIRED)
        there = tl.load(values + j, mask=j < num, other=float("-inf"))
        before = (there[None, :] > here[:, None]) | (
            (there[None, :] == here[:, None]) & (j[None, :] < i[:, None])
        )
        rank += tl.sum(tl.where(before, 1, 0), axis=1)
        mass += tl.sum(tl.where(before, weight(there, peak, scale)[None, :], 0.0), axis=1)
    return here, rank, mass
