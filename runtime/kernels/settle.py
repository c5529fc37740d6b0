"""The last launch of sampling: one program a row finds the block that holds the draw, reads it, takes the token.

The draw is the CPU's: the first token, in order of id, at which the running sum of the kept weights exceeds the
uniform number times their total. Sums within a block are float32 in a fixed order, those over blocks and the running
sum inside the chosen block float64; a draw differs from the CPU's where its point lies within that rounding of an edge.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .draw import fault_of, first_above, kept_of, point_of, scanned
from .marks import COUNT, read
from .row_words import COUNTED, CUT, MODE, RANDOM, SCALE, SEQUENCES, row_number, row_word
from .search import (
    CHOSEN,
    DONE,
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
from .workspace import HISTORY, NUM_STATE

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
        at = tl.arange(0, BLOCKS)
        peak_of = tl.load(peaks + row * num_blocks + at, mask=at < num_blocks, other=float("-inf"))
        peak = tl.max(peak_of, axis=0)
        flag = fault_of(peak_of, peak)
        if flag == 0:
            if (mode & RANDOM) == 0:
                block = tl.min(tl.where(peak_of == peak, at, BLOCKS), axis=0)
                ids = block * BLOCK + tl.arange(0, BLOCK)
                inside = ids < vocab
                here = logits + row * vocab
                values = read(here, ids, inside, words, slot, mode, marks, biases, position, vocab, ADJUST)
                token = tl.min(tl.where(values == peak, ids, vocab), axis=0)
            else:
                token = _drawn(
                    logits + row * vocab, words, slot, mode, marks, biases, position, peaks, sums, peak, state,
                    measures, tokens, row, vocab, num_blocks, num_rows, num_passes, CUTS, ADJUST, COARSE, BLOCK, BLOCKS,
                )  # fmt: skip
            if ADJUST:
                _remember(marks, history, slot, mode, position, token, vocab)
    tl.store(tokens + row, token)
    tl.store(flags + row, flag)


@triton.jit
def _remember(marks, history, slot, mode, position, token, vocab):
    if (mode & COUNTED) != 0:
        mark = marks + slot.to(tl.int64) * vocab + token
        count = tl.load(mark)
        tl.store(mark, count + tl.where((count & COUNT) < COUNT, 1, 0))
    if (mode & SEQUENCES) != 0:
        tl.store(history + slot * _HISTORY + position % _HISTORY, token)


@triton.jit
def _drawn(
    logits, words, slot, mode, marks, biases, position, peaks, sums, peak, state, measures, tokens, row, vocab,
    num_blocks, num_rows, num_passes,
    CUTS: tl.constexpr, ADJUST: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    scale = row_number(words, slot, SCALE)
    at = tl.arange(0, BLOCKS)
    low, edge, limit_of = float("-inf"), float("-inf"), at * 0
    _, _, found = scanned(peaks, sums, row, scale, num_blocks, BLOCKS)
    mass_of = found.to(tl.float64)
    token = 0
    is_open = True
    if CUTS:
        if (mode & CUT) != 0:
            here = state + (num_passes * num_rows + row) * _STATE
            if tl.load(here) == CHOSEN:
                token = tl.load(tokens + row)
                is_open = False
            else:
                low, edge, limit_of, mass_of = _cut(
                    logits, words, slot, mode, marks, biases, position, peak, scale, here, measures,
                    row, vocab, num_blocks, num_rows, num_passes, ADJUST, COARSE, BLOCK, BLOCKS,
                )  # fmt: skip
    if is_open:
        running = tl.cumsum(mass_of, axis=0)
        point = point_of(words, slot, position, tl.max(running, axis=0))
        block = first_above(running, mass_of, point, at)
        point -= tl.sum(tl.where(at == block, running - mass_of, 0.0), axis=0)
        inside = tl.arange(0, BLOCK)
        ids = block * BLOCK + inside
        values = read(logits, ids, ids < vocab, words, slot, mode, marks, biases, position, vocab, ADJUST)
        keep = kept_of(values, low, edge, tl.sum(tl.where(at == block, limit_of, 0), axis=0))
        weights = tl.where(keep, weight(values, peak, scale), 0.0).to(tl.float64)
        token = block * BLOCK + first_above(tl.cumsum(weights, axis=0), weights, point, inside)
    return token


@triton.jit
def _cut(
    logits, words, slot, mode, marks, biases, position, peak, scale, here, measures,
    row, vocab, num_blocks, num_rows, num_passes,
    ADJUST: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Ends the search, alone where the passes did not; gives the logits from which equals and others are kept, and by
    block how many equals and which mass."""
    grain = grain_of(mode, COARSE)
    phase, low, high, target, cut, limit, first, second, buffer = resumed(
        words, slot, position, grain, peak, here, measures, row, num_blocks, num_rows, num_passes, BLOCKS
    )
    while phase < DONE:
        pivots = pivots_of(low, high, grain, False)
        buffer = buffer * 0
        into = measures + row * num_blocks * (2 * PIVOTS)
        for block in range(num_blocks):
            ids = block * BLOCK + tl.arange(0, BLOCK)
            values = read(logits, ids, ids < vocab, words, slot, mode, marks, biases, position, vocab, ADJUST)
            store_measure(into + block * (2 * PIVOTS), values, pivots, peak, scale)
        tl.debug_barrier()
        counts, masses = measured(into, num_blocks, BLOCKS)
        phase, low, high, target, cut, limit, first, second = advance(
            words, slot, position, grain, peak, pivots, counts, masses, phase, high, target, cut, limit
        )
        tl.debug_barrier()
    at = tl.arange(0, BLOCKS)
    of_block = measures + ((buffer * num_rows + row) * num_blocks + at) * (2 * PIVOTS)
    inside = at < num_blocks
    equals = tl.load(of_block + first, mask=inside, other=0.0) - tl.load(
        of_block + second, mask=inside, other=0.0
    )
    before = tl.cumsum(equals, axis=0) - equals
    limit_of = tl.minimum(tl.maximum(limit.to(tl.float32) - before, 0.0), equals).to(tl.int32)
    mass_of = tl.load(of_block + PIVOTS + second, mask=inside, other=0.0).to(tl.float64)
    mass_of += limit_of.to(tl.float64) * weight(value_of(low), peak, scale).to(tl.float64)
    edge = tl.where(first == second, value_of(low), value_of(high))
    return value_of(low), edge, limit_of, mass_of
