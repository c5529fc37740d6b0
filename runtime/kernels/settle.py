"""The last launch of sampling: one program a row finds the block that holds the draw, reads it, takes the token.

The draw is the CPU's: the first token, in order of id, at which the running sum of the kept weights exceeds the
uniform number times their total. Sums within a block are float32 in a fixed order, those over blocks and the running
sum inside the chosen block float64; a draw differs from the CPU's where its point lies within that rounding of an edge.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .marks import COUNT, read
from .philox import uniform
from .row_words import (
    CHOICE,
    COUNTED,
    CUT,
    MODE,
    RANDOM,
    SCALE,
    SEED_HIGH,
    SEED_LOW,
    SEQUENCES,
    row_number,
    row_word,
)
from .search import (
    DONE,
    NUM_STATE,
    PIVOTS,
    advance,
    grain_of,
    measured,
    pivots_of,
    resumed,
    store_measure,
    value_of,
    weight,
)
from .sequences import HISTORY

_STATE = tl.constexpr(NUM_STATE)
_HISTORY = tl.constexpr(HISTORY)


@triton.jit(do_not_specialize=["num_rows", "num_passes"])
def settle_kernel(
    logits, slots, positions, words, marks, biases, history, peaks, sums, state, measures, tokens, flags,
    vocab, num_blocks, num_rows, num_passes,
    CUTS: tl.constexpr, ADJUST: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """tokens, flags [R] int32. Counts the token in the row's marks and adds it to its history, where these are used."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    mode = row_word(words, slot, MODE)
    token, flag = 0, 0
    if mode != 0:
        position = tl.load(positions + row)
        scale = row_number(words, slot, SCALE)
        at = tl.arange(0, BLOCKS)
        peak_of = tl.load(peaks + row * num_blocks + at, mask=at < num_blocks, other=float("-inf"))
        peak = tl.max(peak_of, axis=0)
        flag = _flag(peak_of, peak)
        if flag == 0:
            low, edge, kept_of = float("-inf"), float("-inf"), at * 0
            if (mode & RANDOM) != 0:
                sum_of = tl.load(sums + row * num_blocks + at, mask=at < num_blocks, other=0.0)
                mass_of = tl.where(peak_of > float("-inf"), sum_of * weight(peak_of, peak, scale), 0.0).to(
                    tl.float64
                )
                if CUTS:
                    if (mode & CUT) != 0:
                        low, edge, kept_of, mass_of = _cut(
                            logits, words, slot, mode, marks, biases, position, peak, scale, state, measures,
                            row, vocab, num_blocks, num_rows, num_passes, ADJUST, COARSE, BLOCK, BLOCKS,
                        )  # fmt: skip
                running = tl.cumsum(mass_of, axis=0)
                total = tl.max(running, axis=0)
                seed_low, seed_high = row_word(words, slot, SEED_LOW), row_word(words, slot, SEED_HIGH)
                point = uniform(seed_low, seed_high, row_word(words, slot, CHOICE), position) * total
                block = _first_above(running, mass_of, point, at)
                point -= tl.sum(tl.where(at == block, running - mass_of, 0.0), axis=0)
                kept = tl.sum(tl.where(at == block, kept_of, 0), axis=0)
                inside = tl.arange(0, BLOCK)
                ids = block * BLOCK + inside
                values = read(
                    logits + row * vocab,
                    ids,
                    ids < vocab,
                    words,
                    slot,
                    mode,
                    marks,
                    biases,
                    position,
                    vocab,
                    ADJUST,
                )
                equals = ((values < edge) & (values >= low)).to(tl.int32)
                keep = (values >= edge) | ((equals > 0) & (tl.cumsum(equals, axis=0) <= kept))
                weights = tl.where(keep, weight(values, peak, scale), 0.0).to(tl.float64)
                token = block * BLOCK + _first_above(tl.cumsum(weights, axis=0), weights, point, inside)
            else:
                block = tl.min(tl.where(peak_of == peak, at, BLOCKS), axis=0)
                ids = block * BLOCK + tl.arange(0, BLOCK)
                values = read(
                    logits + row * vocab,
                    ids,
                    ids < vocab,
                    words,
                    slot,
                    mode,
                    marks,
                    biases,
                    position,
                    vocab,
                    ADJUST,
                )
                token = tl.min(tl.where(values == peak, ids, vocab), axis=0)
            if ADJUST:
                _remember(marks, history, slot, mode, position, token, vocab)
    tl.store(tokens + row, token)
    tl.store(flags + row, flag)


@triton.jit
def _flag(peak_of, peak):
    wrong = tl.max((peak_of != peak_of).to(tl.int32), axis=0)
    other = tl.where(peak == float("-inf"), 2, tl.where(peak == float("inf"), 3, 0))
    return tl.where(wrong > 0, 1, other)


@triton.jit
def _first_above(running, parts, point, at):
    """The first place whose running sum exceeds the point, and never past the last part that has any."""
    last = tl.max(tl.where(parts > 0, at, 0), axis=0)
    return tl.minimum(tl.sum((running <= point).to(tl.int32), axis=0), last)


@triton.jit
def _remember(marks, history, slot, mode, position, token, vocab):
    if (mode & COUNTED) != 0:
        mark = marks + slot.to(tl.int64) * vocab + token
        count = tl.load(mark)
        tl.store(mark, count + ((count & COUNT) < COUNT).to(tl.int32))
    if (mode & SEQUENCES) != 0:
        tl.store(history + slot * _HISTORY + position % _HISTORY, token)


@triton.jit
def _cut(
    logits, words, slot, mode, marks, biases, position, peak, scale, state, measures,
    row, vocab, num_blocks, num_rows, num_passes,
    ADJUST: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Ends the search, alone where the passes did not; gives the logits from which equals and others are kept, and by
    block how many equals and which mass."""
    grain = grain_of(mode, COARSE)
    phase, low, high, target, cut, limit, first, second, buffer = resumed(
        words, slot, position, grain, peak,
        state + ((num_passes - 1) * num_rows + row) * _STATE, measures,
        row, num_blocks, num_rows, num_passes - 1, BLOCKS,
    )  # fmt: skip
    while phase != DONE:
        pivots = pivots_of(low, high, grain, False)
        buffer = buffer * 0
        into = measures + row * num_blocks * (2 * PIVOTS)
        for block in range(num_blocks):
            ids = block * BLOCK + tl.arange(0, BLOCK)
            values = read(
                logits + row * vocab,
                ids,
                ids < vocab,
                words,
                slot,
                mode,
                marks,
                biases,
                position,
                vocab,
                ADJUST,
            )
            store_measure(into + block * (2 * PIVOTS), values, pivots, peak, scale)
        tl.debug_barrier()
        counts, masses = measured(into, num_blocks, BLOCKS)
        phase, low, high, target, cut, limit, i, j = advance(
            words, slot, position, grain, peak, pivots, counts, masses, phase, high, target, cut, limit
        )
        first, second = i.to(tl.int64), j.to(tl.int64)
        tl.debug_barrier()
    at = tl.arange(0, BLOCKS)
    of_block = measures + ((buffer * num_rows + row) * num_blocks + at) * (2 * PIVOTS)
    inside = at < num_blocks
    equals = tl.load(of_block + first, mask=inside, other=0.0) - tl.load(
        of_block + second, mask=inside, other=0.0
    )
    before = tl.cumsum(equals, axis=0) - equals
    kept_of = tl.minimum(tl.maximum(limit.to(tl.float32) - before, 0.0), equals).to(tl.int32)
    mass_of = tl.load(of_block + PIVOTS + second, mask=inside, other=0.0).to(tl.float64)
    mass_of += kept_of.to(tl.float64) * weight(value_of(low), peak, scale).to(tl.float64)
    edge = tl.where(first == second, value_of(low), value_of(high))
    return value_of(low), edge, kept_of, mass_of
