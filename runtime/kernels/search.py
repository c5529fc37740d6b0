"""Where a row is cut: the search for the lowest logit that top_k, top_p and min_p keep.

The kept tokens are a prefix of the order by falling logit and rising id, so a cut is a logit and how many of its
equals stay. No sort finds it: a pass measures, at 16 pivots between a bracket's edges, how many logits lie at or above
each and what they weigh; the two pivots around the wanted count or mass are the next bracket. The search ends when
the bracket holds one value or one token. With top_k and top_p, top_k comes first, since top_p is a share of what
top_k left; min_p bounds the last bracket from below.

Logits are compared through *ordinals*, integers in the same order, so that a bracket can be divided down to single
values; those of bf16 are 65,536 apart. Every measure is a sum over one set of tokens in one order, whatever the pivots
were, so the outcome depends neither on the number of passes nor on how the blocks are shared out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .marks import read
from .row_words import (
    ADJUSTED,
    CUT,
    MODE,
    PROMPT_LEN,
    REACH,
    SCALE,
    TOP_K,
    TOP_P,
    TOP_P_BOUND,
    TOP_P_DECAY,
    TOP_P_REST,
    row_number,
    row_word,
)
from .workspace import NUM_PIVOTS, NUM_STATE

PIVOTS = tl.constexpr(NUM_PIVOTS)
_STATE = tl.constexpr(NUM_STATE)
BY_COUNT = tl.constexpr(0)
BY_MASS = tl.constexpr(1)
DONE = tl.constexpr(2)
CHOSEN = tl.constexpr(3)
"""The token is known: the row was settled from its shortlist."""
NO_LIMIT = tl.constexpr(1 << 40)
LARGEST = tl.constexpr(3.0e38)
_SPREAD = tl.constexpr(240)


@triton.jit
def ordinal(value):
    """int64 in the order of float32 values; both zeros are 0."""
    bits = value.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


@triton.jit
def value_of(at):
    bits = tl.where(at >= 0, at, -at).to(tl.int32)
    value = bits.to(tl.float32, bitcast=True)
    return tl.where(at >= 0, value, -value)


@triton.jit
def weight(values, peak, scale):
    return tl.exp2((values - peak) * scale)


@triton.jit
def grain_of(mode, COARSE: tl.constexpr):
    """How far apart the ordinals of a row are: bf16 logits that nothing adjusts lie on the coarse grid."""
    fine = tl.full([], 1, tl.int64)
    return tl.where((mode & ADJUSTED) == 0, fine * 65536, fine) if COARSE else fine


@triton.jit
def pivots_of(low, high, grain, by_value):
    """Ordinals from low to high, both included: evenly by value where asked and while that divides the bracket, else
    evenly by ordinal."""
    i = tl.arange(0, PIVOTS).to(tl.int64)
    num = (high - low) // grain
    bottom, top = value_of(low).to(tl.float64), tl.minimum(value_of(high), LARGEST).to(tl.float64)
    even = ordinal((bottom + (top - bottom) * i.to(tl.float64) / (PIVOTS - 1)).to(tl.float32))
    even = tl.minimum(tl.maximum(even & ~(grain - 1), low), high)
    even = tl.where(i == PIVOTS - 1, high, even)
    return tl.where(by_value & (num > _SPREAD), even, low + grain * ((num * i) // (PIVOTS - 1)))


@triton.jit
def pick(vector, i):
    """vector[i] of a vector over the pivots."""
    return tl.sum(tl.where(tl.arange(0, PIVOTS) == i, vector, 0), axis=0)


@triton.jit
def top_p_of(words, slot, position):
    top_p = row_number(words, slot, TOP_P).to(tl.float64) + row_number(words, slot, TOP_P_REST).to(tl.float64)
    generated = (position - row_word(words, slot, PROMPT_LEN)).to(tl.float32)
    decayed = top_p * tl.exp2(row_number(words, slot, TOP_P_DECAY) * generated).to(tl.float64)
    return tl.maximum(tl.maximum(decayed, row_number(words, slot, TOP_P_BOUND).to(tl.float64)), 1e-30)


@triton.jit
def aligned(value, grain):
    """The lowest ordinal on the grid that is not below a value."""
    return (ordinal(tl.maximum(value, -LARGEST)) + grain - 1) & ~(grain - 1)


@triton.jit
def advance(words, slot, position, grain, peak, pivots, counts, masses, phase, high_edge, target, cut, limit):
    """One bracket to the next, from what was measured at the pivots (counts, masses [PIVOTS] fp64).

    Gives phase, low, high, target, cut, limit and the two pivots of the end: tokens at or above the second are kept,
    and of those between the first and the second, equals all, `limit`.
    """
    top_k, top_p = row_word(words, slot, TOP_K), top_p_of(words, slot, position)
    scale, reach = row_number(words, slot, SCALE), row_number(words, slot, REACH)
    enough = tl.where(phase == BY_COUNT, counts >= top_k, masses >= target)
    i = tl.sum(enough.to(tl.int32), axis=0) - 1
    binds = i >= 0
    i = tl.minimum(tl.maximum(i, 0), PIVOTS - 2)
    low, high = pick(pivots, i), pick(pivots, i + 1)
    count, above = pick(counts, i), pick(counts, i + 1)
    mass, mass_above = pick(masses, i), pick(masses, i + 1)
    ties = count - above
    found = binds & ((high - low <= grain) | (ties <= 1))
    each = weight(value_of(low), peak, scale).to(tl.float64)
    wanted = tl.where(
        phase == BY_COUNT, top_k - above, tl.ceil((target - mass_above) / tl.maximum(each, 1e-300))
    )
    kept = tl.minimum(tl.maximum(wanted, 1.0), ties)
    kept = tl.where((phase == BY_MASS) & (low == cut), tl.minimum(kept, limit.to(tl.float64)), kept)
    whole = (kept >= ties) | ~binds

    again = (phase == BY_COUNT) & (found | ~binds) & (top_p < 1.0)
    left = tl.where(whole, mass, mass_above + kept * each)
    done = (found | ~binds) & ~again
    next_phase = tl.where(done, DONE, tl.where(again, BY_MASS, phase)).to(tl.int64)
    next_low = tl.where(again, tl.maximum(low, aligned(peak - reach, grain)), low)
    next_high = tl.where(again, ordinal(peak) + grain, tl.where(binds, high, high_edge))
    next_target = tl.where(again, top_p * left, target)
    next_cut = tl.where(again, low, cut)
    next_limit = tl.where(again & whole, NO_LIMIT, tl.where(again | done, kept.to(tl.int64), limit))
    first, second = i.to(tl.int64), tl.where(whole, i, i + 1).to(tl.int64)
    return next_phase, next_low, next_high, next_target, next_cut, next_limit, first, second


@triton.jit
def measure(values, pivots, peak, scale):
    """How many values lie at or above each pivot, and what they weigh: two [PIVOTS] fp32."""
    above = values[None, :] >= value_of(pivots)[:, None]
    weights = weight(values, peak, scale)
    return tl.sum(tl.where(above, 1.0, 0.0), axis=1), tl.sum(tl.where(above, weights[None, :], 0.0), axis=1)


@triton.jit
def measured(measures, num_blocks, BLOCKS: tl.constexpr):
    """Counts and masses at the pivots over all blocks of a row; measures [num_blocks, 2, PIVOTS]."""
    at = tl.arange(0, BLOCKS)[:, None] * (2 * PIVOTS) + tl.arange(0, PIVOTS)[None, :]
    mask = (tl.arange(0, BLOCKS) < num_blocks)[:, None] & (tl.arange(0, PIVOTS) >= 0)[None, :]
    counts = tl.load(measures + at, mask=mask, other=0.0)
    masses = tl.load(measures + PIVOTS + at, mask=mask, other=0.0)
    return tl.sum(counts.to(tl.float64), axis=0), tl.sum(masses.to(tl.float64), axis=0)


@triton.jit
def load_search(state):
    """Phase, low, high, target, cut, limit, and the pivots and the buffer of the end."""
    target = tl.load(state + 3).to(tl.float64, bitcast=True)
    return (
        tl.load(state), tl.load(state + 1), tl.load(state + 2), target, tl.load(state + 4), tl.load(state + 5),
        tl.load(state + 6), tl.load(state + 7), tl.load(state + 8),
    )  # fmt: skip


@triton.jit
def store_search(state, phase, low, high, target, cut, limit, first, second, buffer):
    tl.store(state, phase)
    tl.store(state + 1, low)
    tl.store(state + 2, high)
    tl.store(state + 3, target.to(tl.int64, bitcast=True))
    tl.store(state + 4, cut)
    tl.store(state + 5, limit)
    tl.store(state + 6, first)
    tl.store(state + 7, second)
    tl.store(state + 8, buffer)


@triton.jit(do_not_specialize=["num_rows", "number"])
def search_kernel(
    logits, slots, positions, words, marks, biases, peaks, state, measures, vocab, num_blocks, num_rows, number,
    ADJUST: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Pass `number`, from 1: a row's programs find the bracket that the last pass left, then measure their blocks.

    state [1 + passes, R, NUM_STATE] int64; measures [2, R, num_blocks, 2, PIVOTS] fp32, written in turn.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    mode = row_word(words, slot, MODE)
    if (mode & CUT) != 0:
        before = state + ((number - 1) * num_rows + row) * _STATE
        after = state + (number * num_rows + row) * _STATE
        if tl.load(before) >= DONE:
            if tl.program_id(1) == 0:
                at = tl.arange(0, _STATE)
                tl.store(after + at, tl.load(before + at))
        else:
            position = tl.load(positions + row)
            peak = peak_of_row(peaks, row, num_blocks, BLOCKS)
            grain = grain_of(mode, COARSE)
            phase, low, high, target, cut, limit, first, second, buffer = resumed(
                words,
                slot,
                position,
                grain,
                peak,
                before,
                measures,
                row,
                num_blocks,
                num_rows,
                number - 1,
                BLOCKS,
            )
            if tl.program_id(1) == 0:
                store_search(after, phase, low, high, target, cut, limit, first, second, buffer)
            if phase != DONE:
                scale = row_number(words, slot, SCALE)
                pivots = pivots_of(low, high, grain, True)
                into = measures + ((number % 2) * num_rows + row) * num_blocks * (2 * PIVOTS)
                for block in range(tl.program_id(1), num_blocks, tl.num_programs(1)):
                    ids = block * BLOCK + tl.arange(0, BLOCK)
                    inside = ids < vocab
                    here = logits + row * vocab
                    values = read(
                        here, ids, inside, words, slot, mode, marks, biases, position, vocab, ADJUST
                    )
                    store_measure(into + block * (2 * PIVOTS), values, pivots, peak, scale)


@triton.jit
def peak_of_row(peaks, row, num_blocks, BLOCKS: tl.constexpr):
    at = tl.arange(0, BLOCKS)
    return tl.max(tl.load(peaks + row * num_blocks + at, mask=at < num_blocks, other=float("-inf")), axis=0)


@triton.jit
def store_measure(into, values, pivots, peak, scale):
    counts, masses = measure(values, pivots, peak, scale)
    i = tl.arange(0, PIVOTS)
    tl.store(into + i, counts)
    tl.store(into + PIVOTS + i, masses)


@triton.jit
def resumed(
    words, slot, position, grain, peak, before, measures, row, num_blocks, num_rows, number, BLOCKS: tl.constexpr
):  # fmt: skip
    """The search after pass `number`, whose state stands at `before`; 0: before the first."""
    phase, low, high, target, cut, limit, first, second, buffer = load_search(before)
    if (phase < DONE) & (number > 0):
        buffer = number.to(tl.int64) % 2
        from_ = measures + (buffer * num_rows + row) * num_blocks * (2 * PIVOTS)
        counts, masses = measured(from_, num_blocks, BLOCKS)
        pivots = pivots_of(low, high, grain, True)
        phase, low, high, target, cut, limit, first, second = advance(
            words, slot, position, grain, peak, pivots, counts, masses, phase, high, target, cut, limit
        )
    return phase, low, high, target, cut, limit, first, second, buffer
