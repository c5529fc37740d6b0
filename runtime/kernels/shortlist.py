"""The short way to a cut: most rows keep few tokens, so one program a row lists those that may be kept and settles it.

What the scan knows of the vocabulary's parts (of 128 ids, say) bounds the cut from below without reading a logit: k
parts peak at or above a logit, so k tokens lie there; or all that lies below it weighs too little to belong to top_p.
The tokens above the bound are listed in order of id, cut and drawn from there. A row whose list would be too long
leaves its bound as the first bracket of the search through all logits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .draw import first_above, kept_of, point_of
from .marks import read
from .row_words import CUT, MODE, REACH, SCALE, TOP_K, row_number, row_word
from .search import (
    BY_COUNT,
    BY_MASS,
    CHOSEN,
    DONE,
    LARGEST,
    NO_LIMIT,
    NUM_STATE,
    PIVOTS,
    advance,
    aligned,
    grain_of,
    measure,
    ordinal,
    pick,
    pivots_of,
    store_search,
    top_p_of,
    value_of,
    weight,
)

LISTED = 2048
_STATE = tl.constexpr(NUM_STATE)
_MOST_PARTS = tl.constexpr(256)
_ROUNDS = tl.constexpr(3)


@triton.jit
def shortlist_kernel(
    logits, slots, positions, words, marks, biases, peaks, sums, part_peaks, part_sums, active, listed, listed_ids,
    state, tokens, vocab, num_blocks,
    ADJUST: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    PARTS: tl.constexpr, ALL_PARTS: tl.constexpr, MOST: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Scratch: active [R, num_blocks * PARTS] int32; listed fp32 and listed_ids int32 [R, MOST]."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    mode = row_word(words, slot, MODE)
    if (mode & CUT) != 0:
        position = tl.load(positions + row)
        scale = row_number(words, slot, SCALE)
        grain = grain_of(mode, COARSE)
        at = tl.arange(0, BLOCKS)
        peak_of = tl.load(peaks + row * num_blocks + at, mask=at < num_blocks, other=float("-inf"))
        sum_of = tl.load(sums + row * num_blocks + at, mask=at < num_blocks, other=0.0)
        peak = tl.max(peak_of, axis=0)
        total = tl.sum(tl.where(peak_of > float("-inf"), sum_of * weight(peak_of, peak, scale), 0.0), axis=0)
        wrong = tl.max(tl.where(peak_of != peak_of, 1, 0), axis=0) > 0
        wrong |= (peak == float("-inf")) | (peak == float("inf"))

        j = tl.arange(0, ALL_PARTS)
        is_part = j < num_blocks * PARTS
        part_at = row * num_blocks * PARTS + j
        part_peak = tl.load(part_peaks + part_at, mask=is_part, other=float("-inf"))
        anchor = tl.load(peaks + row * num_blocks + j // PARTS, mask=is_part, other=float("-inf"))
        part_sum = tl.load(part_sums + part_at, mask=is_part, other=0.0)
        part_sum = tl.where(part_peak > float("-inf"), part_sum * weight(anchor, peak, scale), 0.0)
        top_p = top_p_of(words, slot, position)
        top_k = row_word(words, slot, TOP_K)
        bound = _bound(part_peak, part_sum, peak, scale, total, top_k, top_p, row_number(words, slot, REACH),
                       BLOCK // PARTS)  # fmt: skip

        by_count = (top_k > 0) & (top_k < vocab)
        phase = tl.where(wrong, DONE, tl.where(by_count, BY_COUNT, BY_MASS)).to(tl.int64)
        high = ordinal(peak) + grain
        low = tl.minimum(aligned(bound, grain), high - grain)
        target = tl.where(top_p < 1.0, top_p * total.to(tl.float64), float("inf"))
        cut, limit = low * 0 - NO_LIMIT, low * 0 + NO_LIMIT

        is_active = is_part & (part_peak >= value_of(low))
        order = tl.cumsum(tl.where(is_active, 1, 0), axis=0)
        num_active = tl.max(order, axis=0)
        num_listed = num_active * 0
        if (phase < DONE) & (num_active <= _MOST_PARTS) & ((top_k <= MOST) | (phase != BY_COUNT)):
            tl.store(active + row * num_blocks * PARTS + order - 1, j, mask=is_active)
            tl.debug_barrier()
            num_listed = _listed(
                logits + row * vocab, words, slot, mode, marks, biases, position, vocab, value_of(low),
                active + row * num_blocks * PARTS, num_active, listed + row * MOST, listed_ids + row * MOST,
                ADJUST, BLOCK // PARTS, MOST, CHUNK,
            )  # fmt: skip
            tl.debug_barrier()
        if (num_listed > 0) & (num_listed <= MOST):
            i = tl.arange(0, MOST)
            values = tl.load(listed + row * MOST + i, mask=i < num_listed, other=float("-inf"))
            ids = tl.load(listed_ids + row * MOST + i, mask=i < num_listed, other=0)
            first, second = low * 0, low * 0
            rounds = 0
            while phase < DONE:
                pivots = pivots_of(low, high, grain, rounds < 8)
                counts, masses = measure(values, pivots, peak, scale)
                counts, masses = counts.to(tl.float64), masses.to(tl.float64)
                phase, low, high, target, cut, limit, first, second = advance(
                    words,
                    slot,
                    position,
                    grain,
                    peak,
                    pivots,
                    counts,
                    masses,
                    phase,
                    high,
                    target,
                    cut,
                    limit,
                )
                rounds += 1
            edge = tl.where(first == second, value_of(low), value_of(high))
            keep = kept_of(values, value_of(low), edge, limit)
            weights = tl.where(keep, weight(values, peak, scale), 0.0).to(tl.float64)
            running = tl.cumsum(weights, axis=0)
            point = point_of(words, slot, position, tl.max(running, axis=0))
            place = first_above(running, weights, point, i)
            tl.store(tokens + row, tl.sum(tl.where(i == place, ids, 0), axis=0))
            phase = phase * 0 + CHOSEN
        store_search(state + row * _STATE, phase, low, high, target, cut, limit, low * 0, low * 0, low * 0)


@triton.jit
def _bound(part_peak, part_sum, peak, scale, total, top_k, top_p, reach, PART: tl.constexpr):
    """A logit at or below the cut, near it: found among 16 even steps, then among 16 of one of these, and again."""
    weightless = 150.0 / scale
    top = peak
    bottom = peak - tl.where((top_k > 0) & (top_p < 1.0), weightless, tl.minimum(reach, weightless))
    spare = ((1.0 - top_p) * 0.9999).to(tl.float32) * total
    others = part_sum - weight(part_peak, peak, scale) + 2e-6 * part_sum
    i = tl.arange(0, PIVOTS)
    for _ in tl.static_range(_ROUNDS):
        steps = bottom + (top - bottom) * (i.to(tl.float32) / (PIVOTS - 1))
        above = part_peak[None, :] >= steps[:, None]
        counts = tl.sum(tl.where(above, 1, 0), axis=1)
        most = weight(steps, peak, scale) * (PART - 1)
        below = tl.where(above, tl.minimum(others[None, :], most[:, None]), part_sum[None, :])
        lefts = tl.sum(below, axis=1)
        allowed = tl.where(top_k > 0, counts >= top_k, lefts <= spare)
        n = tl.maximum(tl.sum(tl.where(allowed, 1, 0), axis=0) - 1, 0)
        top = tl.where(n < PIVOTS - 1, pick(steps, n + 1), top)
        bottom = pick(steps, n)
    return tl.maximum(bottom, -LARGEST)


@triton.jit
def _listed(
    logits, words, slot, mode, marks, biases, position, vocab, least, active, num_active, listed, listed_ids,
    ADJUST: tl.constexpr, PART: tl.constexpr, MOST: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """List the logits of the active parts that are not below `least`, in order of id; gives how many there are: those
    past `MOST` are not listed."""
    count = 0
    first = 0
    while (first < num_active) & (count <= MOST):
        at = tl.arange(0, CHUNK)
        is_in = first + at // PART < num_active
        ids = tl.load(active + first + at // PART, mask=is_in, other=0) * PART + at % PART
        values = read(
            logits, ids, is_in & (ids < vocab), words, slot, mode, marks, biases, position, vocab, ADJUST
        )
        keep = values >= least
        place = count + tl.cumsum(tl.where(keep, 1, 0), axis=0)
        tl.store(listed + place - 1, values, mask=keep & (place <= MOST))
        tl.store(listed_ids + place - 1, ids, mask=keep & (place <= MOST))
        count = tl.max(place, axis=0)
        first += CHUNK // PART
    return count
