"""The first launch of sampling: highest logit and sum of weights, by block of a row's vocabulary.

Blocks have one size whatever the batch, and each is reduced by itself: a row's numbers depend neither on the other
rows nor on how many programs share it. Sums are relative to the block's own highest logit, so one reading is enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .marks import read
from .row_words import MODE, RANDOM, SCALE, row_number, row_word


@triton.jit
def scan_kernel(
    logits, slots, positions, words, marks, biases, peaks, sums, vocab, num_blocks,
    ADJUST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """peaks, sums [R, num_blocks] fp32. A block with a NaN has a NaN for its peak."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    mode = row_word(words, slot, MODE)
    if mode != 0:
        scale = row_number(words, slot, SCALE)
        position = tl.load(positions + row)
        for block in range(tl.program_id(1), num_blocks, tl.num_programs(1)):
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
            peak = tl.max(values)
            wrong = tl.max((values != values).to(tl.int32))
            tl.store(peaks + row * num_blocks + block, tl.where(wrong > 0, float("nan"), peak))
            if (mode & RANDOM) != 0:
                weights = tl.exp2((values - tl.maximum(peak, -3e38)) * scale)
                tl.store(sums + row * num_blocks + block, tl.sum(weights))
