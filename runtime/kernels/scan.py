"""The first launch of sampling: highest logit and sum of weights, by block of a row's vocabulary.

Blocks have one size whatever the batch, and each is reduced by itself: a row's numbers depend neither on the other
rows nor on how many programs share it. Sums are relative to the block's own highest logit, so one reading is enough.
Rows that will be cut get the same for the block's parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .marks import adjusted, load
from .row_words import CUT, MODE, RANDOM, SCALE, row_number, row_word


@triton.jit
def _higher(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def scan_kernel(
    logits, slots, positions, words, marks, biases, peaks, sums, part_peaks, part_sums, vocab, num_blocks,
    ADJUST: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """peaks, sums [R, num_blocks], part_peaks, part_sums [R, num_blocks * PARTS], fp32. The peak of what holds a NaN is
    NaN. All sums are relative to the block's peak."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    mode = row_word(words, slot, MODE)
    if mode != 0:
        scale = row_number(words, slot, SCALE)
        position = tl.load(positions + row)
        step = tl.num_programs(1)
        part = tl.arange(0, PARTS)
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        following = load(logits + row * vocab, ids, ids < vocab)
        for block in range(tl.program_id(1), num_blocks, step):
            ids = block * BLOCK + tl.arange(0, BLOCK)
            values = following
            following = load(logits + row * vocab, ids + step * BLOCK, ids + step * BLOCK < vocab)
            if ADJUST:
                values = adjusted(values, ids, ids < vocab, words, slot, mode, marks, biases, position, vocab)
            peak = tl.reduce(values, 0, _higher)
            at = row * num_blocks + block
            tl.store(peaks + at, peak)
            if (mode & RANDOM) != 0:
                weights = tl.exp2((values - tl.maximum(peak, -3e38)) * scale)
                tl.store(sums + at, tl.sum(weights, axis=0))
                if (mode & CUT) != 0:
                    shaped = tl.reshape(values, [PARTS, BLOCK // PARTS])
                    tl.store(part_peaks + at * PARTS + part, tl.max(shaped, axis=1))
                    shaped = tl.reshape(weights, [PARTS, BLOCK // PARTS])
                    tl.store(part_sums + at * PARTS + part, tl.sum(shaped, axis=1))
