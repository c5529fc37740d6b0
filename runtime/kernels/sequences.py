"""Bad sequences: before each draw, the ids that would complete one are banned for that draw."""

from __future__ import annotations

import triton
import triton.language as tl

from .marks import BANNED_NOW
from .row_words import MODE, NUM_SEQUENCES, SEQUENCES, row_word
from .workspace import HISTORY, MOST_IDS, MOST_SEQUENCES

_HISTORY = tl.constexpr(HISTORY)
_MOST_SEQUENCES = tl.constexpr(MOST_SEQUENCES)
_MOST_IDS = tl.constexpr(MOST_IDS)


@triton.jit
def ban_kernel(slots, positions, words, marks, history, ends, ids, vocab, BLOCK: tl.constexpr):
    """One program a row. ends [slots, MOST_SEQUENCES]: where each sequence ends in ids [slots, MOST_IDS]."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if (row_word(words, slot, MODE) & SEQUENCES) != 0:
        number = row_word(words, slot, NUM_SEQUENCES)
        marks += slot.to(tl.int64) * vocab
        ends += slot * _MOST_SEQUENCES
        ids += slot * _MOST_IDS
        for first in range(0, number, BLOCK):
            i = first + tl.arange(0, BLOCK)
            last = tl.load(ids + tl.load(ends + i, mask=i < number, other=1) - 1, mask=i < number, other=0)
            tl.atomic_and(marks + last, ~BANNED_NOW, mask=i < number)
        tl.debug_barrier()
        position = tl.load(positions + row)
        for first in range(0, number, BLOCK):
            i = first + tl.arange(0, BLOCK)
            end = tl.load(ends + i, mask=i < number, other=1) - 1
            start = tl.load(ends + i - 1, mask=(i > 0) & (i < number), other=0)
            length = end - start
            same = (i < number) & (length <= position)
            for back in range(1, tl.max(tl.where(same, length, 0), axis=0) + 1):
                place = slot * _HISTORY + (position - back) % _HISTORY
                said = tl.load(history + place, mask=position >= back, other=-1)
                wanted = tl.load(ids + end - back, mask=same & (back <= length), other=0)
                same = same & ((back > length) | (wanted == said))
            last = tl.load(ids + end, mask=i < number, other=0)
            tl.atomic_or(marks + last, BANNED_NOW, mask=same)
