"""A word for each token id of a slot that adjusts its logits: how often it was generated, whether it stands in the
prompt, whether it is banned, listed or an end, and which bias it has.

Only rows that adjust anything read their marks, so the table costs memory, not time. The host writes a seat's marks
after `forget`; the device counts what it draws.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .row_words import (
    ADJUSTED,
    FREQUENCY,
    MIN_TOKENS,
    ONLY_LISTED,
    PRESENCE,
    PROMPT_LEN,
    REPETITION,
    row_number,
    row_word,
)
from .workspace import MOST_BIASES

COUNT = tl.constexpr(0xFFFF)
"""The low bits: times generated, up to 65,535."""
IN_PROMPT = tl.constexpr(1 << 16)
BANNED = tl.constexpr(1 << 17)
BANNED_NOW = tl.constexpr(1 << 18)
"""Set and cleared by the device, as bad sequences come to their last id."""
LISTED = tl.constexpr(1 << 19)
END = tl.constexpr(1 << 20)
BIAS_SHIFT = tl.constexpr(21)
"""The top bits: 1 + the index of the id's bias; 0: none."""
_BIASES = tl.constexpr(MOST_BIASES)
_CLEARED = 4096


@triton.jit
def read(
    logits, ids, inside, words, slot, mode, marks, biases, position, vocab, ADJUST: tl.constexpr
):  # fmt: skip
    """fp32 logits of `ids` of a row, -inf outside, after bans, bias and penalties. `position`: tokens before."""
    values = load(logits, ids, inside)
    if ADJUST:
        values = adjusted(values, ids, inside, words, slot, mode, marks, biases, position, vocab)
    return values


@triton.jit
def load(logits, ids, inside):
    return tl.load(logits + ids, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def adjusted(values, ids, inside, words, slot, mode, marks, biases, position, vocab):
    if (mode & ADJUSTED) != 0:
        mark = tl.load(marks + slot.to(tl.int64) * vocab + ids, mask=inside, other=0)
        values = _allowed(values, mark, words, slot, mode, position)
        values = _penalised(_biased(values, mark, biases, slot), mark, words, slot)
    return values


@triton.jit
def _allowed(values, mark, words, slot, mode, position):
    early = position - row_word(words, slot, PROMPT_LEN) < row_word(words, slot, MIN_TOKENS)
    banned = (mark & (BANNED | BANNED_NOW)) != 0
    banned |= early & ((mark & END) != 0)
    banned |= ((mode & ONLY_LISTED) != 0) & ((mark & LISTED) == 0)
    return tl.where(banned, float("-inf"), values)


@triton.jit
def _biased(values, mark, biases, slot):
    index = (mark >> BIAS_SHIFT) & (2 * _BIASES - 1)
    return values + tl.load(biases + slot * _BIASES + index - 1, mask=index > 0, other=0.0)


@triton.jit
def _penalised(values, mark, words, slot):
    count = mark & COUNT
    repetition = row_number(words, slot, REPETITION)
    repeated = tl.where(values > 0, values / repetition, values * repetition)
    values = tl.where((mark & (COUNT | IN_PROMPT)) != 0, repeated, values)
    penalty = row_number(words, slot, PRESENCE) + row_number(words, slot, FREQUENCY) * count.to(tl.float32)
    return tl.where(count > 0, values - penalty, values)


@triton.jit(do_not_specialize=["slot"])
def _forget(marks, slot, vocab, BLOCK: tl.constexpr):
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(marks + slot.to(tl.int64) * vocab + ids, 0, mask=ids < vocab)


def forget(marks: Tensor, slot: int) -> None:
    """Clear a slot's row of marks [slots, vocab] int32, in stream order."""
    vocab = marks.size(1)
    _forget[(triton.cdiv(vocab, _CLEARED),)](marks, slot, vocab, BLOCK=_CLEARED)
