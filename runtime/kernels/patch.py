"""Scatter of staged words into the arena. On a card the kernel reads the pinned block over the bus, without a copy."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit(do_not_specialize=["count"])
def _apply(words, offsets, values, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    offset = tl.load(offsets + at, mask=mask)
    tl.store(words + offset, tl.load(values + at, mask=mask), mask=mask)


def apply_patch(words: Tensor, block: Tensor, count: int) -> None:
    """words [n] int32; block [2, capacity] int32, pinned: offsets, then values; each offset stands there once."""
    run = apply_patch_by_kernel if words.is_cuda else apply_patch_naive
    run(words, block, count)


def apply_patch_by_kernel(words: Tensor, block: Tensor, count: int) -> None:
    _apply[(triton.cdiv(count, _BLOCK),)](words, block[0], block[1], count, BLOCK=_BLOCK)


def apply_patch_naive(words: Tensor, block: Tensor, count: int) -> None:
    words[block[0, :count].long()] = block[1, :count]
