"""The short way to a cut: most rows keep few tokens, so one program a row lists those that may be kept and settles it.

What the scan knows of the vocabulary's parts bounds the cut from below without reading a logit: enough parts peak at
or above it for top_k, or all that lies below it weighs too little to belong to top_p. The tokens above are listed in
order of id, cut and drawn from there: a short list by comparing all pairs, a longer one by the search of `search.py`
within it. A row whose list would be too long leaves its bound as the first bracket of the search through all logits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .draw import fault_of, first_above, kept_of, point_of, scanned
from .listing import ROUNDS, bound_by_count, listed, lowest_peak, narrowed, ranked, steps_between
from .row_words import CUT, MODE, REACH, SCALE, TOP_K, row_number, row_word
from .search import (
    BY_COUNT,
    BY_MASS,
    CHOSEN,
    DONE,
    LARGEST,
    NO_LIMIT,
    advance,
    aligned,
    grain_of,
    measure,
    ordinal,
    pivots_of,
    store_search,
    top_p_of,
    value_of,
    weight,
)
from .workspace import NUM_STATE, SHORTLISTED

LISTED, COMPARED = SHORTLISTED, 256
"""Tokens of a list, and of one that is short enough to compare all pairs."""
_STATE = tl.constexpr(NUM_STATE)


@triton.jit
def shortlist_kernel(
    logits, slots, positions, words, marks, biases, peaks, sums, part_peaks, part_sums, active, values, ids,
    state, tokens, vocab, num_blocks,
    ADJUST: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    PARTS: tl.constexpr, ALL_PARTS: tl.constexpr, MOST: tl.constexpr, COMPARED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Scratch: active [R, num_blocks * PARTS] int32; values fp32 and ids int32 [R, MOST]."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    mode = row_word(words, slot, MODE)
    if (mode & CUT) != 0:
        position = tl.load(positions + row)
        scale = row_number(words, slot, SCALE)
        grain = grain_of(mode, COARSE)
        peak_of, peak, mass_of = scanned(peaks, sums, row, scale, num_blocks, BLOCKS)
        total = tl.sum(mass_of, axis=0)
        is_wrong = fault_of(peak_of, peak) != 0
        part_peak, part_sum = _parts(
            peaks, part_peaks, part_sums, row, peak, scale, num_blocks, PARTS, ALL_PARTS
        )
        top_k, top_p = row_word(words, slot, TOP_K), top_p_of(words, slot, position)
        top_k = tl.where(top_k < vocab, top_k, 0)
        floor = peak - row_number(words, slot, REACH)
        bound = _bound(part_peak, part_sum, peak, scale, total, top_k, top_p, floor, BLOCK // PARTS)

        phase = tl.where(is_wrong, DONE, tl.where(top_k > 0, BY_COUNT, BY_MASS)).to(tl.int64)
        high = ordinal(peak) + grain
        low = tl.minimum(aligned(bound, grain), high - grain)
        target = tl.where(top_p < 1.0, top_p * total.to(tl.float64), float("inf"))
        num = 0
        if not is_wrong:
            num = listed(
                logits + row * vocab, words, slot, mode, marks, biases, position, vocab, value_of(low), part_peak,
                active + row * num_blocks * PARTS, values + row * MOST, ids + row * MOST,
                ADJUST, BLOCK // PARTS, ALL_PARTS, MOST, CHUNK,
            )  # fmt: skip
        if (num > 0) & (num <= MOST):
            if num <= COMPARED:
                place = _compared(
                    words, slot, position, values + row * MOST, num, peak, scale, top_k, top_p, target, floor, COMPARED
                )  # fmt: skip
            else:
                place = _searched(
                    words, slot, position, grain, values + row * MOST, num, peak, scale, phase, low, high, target, MOST
                )  # fmt: skip
            tl.store(tokens + row, tl.load(ids + row * MOST + place))
            phase = phase * 0 + CHOSEN
        zero = low * 0
        here = state + row * _STATE
        store_search(here, phase, low, high, target, zero - NO_LIMIT, zero + NO_LIMIT, zero, zero, zero)


@triton.jit
def _parts(
    peaks, part_peaks, part_sums, row, peak, scale, num_blocks, PARTS: tl.constexpr, ALL_PARTS: tl.constexpr
):  # fmt: skip
    """Of each part: its peak, and what it weighs."""
    j = tl.arange(0, ALL_PARTS)
    is_part = j < num_blocks * PARTS
    part_peak = tl.load(part_peaks + row * num_blocks * PARTS + j, mask=is_part, other=float("-inf"))
    part_sum = tl.load(part_sums + row * num_blocks * PARTS + j, mask=is_part, other=0.0)
    anchor = tl.load(peaks + row * num_blocks + j // PARTS, mask=is_part, other=float("-inf"))
    return part_peak, tl.where(part_peak > float("-inf"), part_sum * weight(anchor, peak, scale), 0.0)


@triton.jit
def _bound(part_peak, part_sum, peak, scale, total, top_k, top_p, floor, PART: tl.constexpr):
    """A logit at or below the cut, near it. top_p is a share of what top_k leaves, so min_p then bounds nothing."""
    weightless = peak - 150.0 / scale
    bottom = tl.maximum(
        tl.where((top_k > 0) & (top_p < 1.0), weightless, tl.maximum(floor, weightless)), -LARGEST
    )
    if top_k > 0:
        lowest = tl.maximum(bottom, lowest_peak(part_peak))
        enough = tl.sum(tl.where(part_peak >= lowest, 1, 0), axis=0) >= top_k
        bottom = bound_by_count(part_peak, tl.where(enough, lowest, bottom), peak, top_k)
    else:
        top = peak
        spare = ((1.0 - top_p) * 0.9999).to(tl.float32) * total
        others = part_sum - weight(part_peak, peak, scale) + 2e-6 * part_sum
        for _ in tl.static_range(ROUNDS):
            steps = steps_between(bottom, top)
            most = weight(steps, peak, scale) * (PART - 1)
            under = tl.minimum(others[None, :], most[:, None])
            under = tl.where(part_peak[None, :] >= steps[:, None], under, part_sum[None, :])
            bottom, top = narrowed(bottom, top, steps, tl.sum(under, axis=1) <= spare)
    return bottom


@triton.jit
def _compared(
    words, slot, position, values, num, peak, scale, top_k, top_p, target, floor, COMPARED: tl.constexpr
):  # fmt: skip
    """The place of the draw in a short list."""
    here, rank, mass = ranked(values, num, peak, scale, COMPARED)
    i = tl.arange(0, COMPARED)
    weights = tl.where(i < num, weight(here, peak, scale), 0.0)
    within = (rank < top_k) | (top_k == 0)
    left = tl.sum(tl.where(within, weights, 0.0), axis=0)
    target = tl.where((top_k > 0) & (top_p < 1.0), top_p * left.to(tl.float64), target)
    keep = (within & (mass.to(tl.float64) < target) & (here >= floor)) | (rank == 0)
    return _place(words, slot, position, tl.where(keep, weights, 0.0), i)


@triton.jit
def _searched(
    words, slot, position, grain, values, num, peak, scale, phase, low, high, target, MOST: tl.constexpr
):  # fmt: skip
    """The place of the draw in a longer list."""
    i = tl.arange(0, MOST)
    here = tl.load(values + i, mask=i < num, other=float("-inf"))
    cut, limit, first, second = low * 0 - NO_LIMIT, low * 0 + NO_LIMIT, low * 0, low * 0
    rounds = 0
    while phase < DONE:
        pivots = pivots_of(low, high, grain, rounds < 8)
        counts, masses = measure(here, pivots, peak, scale)
        counts, masses = counts.to(tl.float64), masses.to(tl.float64)
        phase, low, high, target, cut, limit, first, second = advance(
            words, slot, position, grain, peak, pivots, counts, masses, phase, high, target, cut, limit
        )
        rounds += 1
    edge = tl.where(first == second, value_of(low), value_of(high))
    keep = kept_of(here, value_of(low), edge, limit)
    return _place(words, slot, position, tl.where(keep, weight(here, peak, scale), 0.0), i)


@triton.jit
def _place(words, slot, position, weights, at):
    running = tl.cumsum(weights.to(tl.float64), axis=0)
    return first_above(running, weights, point_of(words, slot, position, tl.max(running, axis=0)), at)
