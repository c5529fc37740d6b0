"""Rows in eight bits: e4m3 values, and for each row the scale that makes its largest one 448.

A row is narrowed by itself and in the same way whoever computes it and however many rows there are, so neither its
values nor its scale depend on its neighbours. Weights are rows of the same kind, one for each output.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .dependent import can_depend

E4M3_MAX = tl.constexpr(448.0)
LEAST = tl.constexpr(1e-12)
"""Stands in for the largest value of a row of zeros."""


class Rows(NamedTuple):
    """values [T, K] contiguous, as they are computed with; or e4m3, and beside them scale [T] fp32."""

    values: Tensor
    scale: Tensor | None = None


@triton.jit
def in_eight_bits(row):
    """An fp32 row, 0 past its end: its values as e4m3 will hold them, and their scale."""
    largest = tl.maximum(tl.max(tl.abs(row)), LEAST)
    return row * tl.div_rn(E4M3_MAX, largest), tl.div_rn(largest, E4M3_MAX)


def row_warps(block: int) -> int:
    """Of a program that holds a row of `block` values whole."""
    return min(16, max(1, block // 512))


@triton.jit
def _narrow(x, out, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    values, by = in_eight_bits(tl.load(x + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32))
    tl.store(scale + row, by)
    tl.store(out + row * WIDTH + at, values.to(out.dtype.element_ty), mask=inside)


def narrow(x: Tensor, out: Rows) -> None:
    """x [T, K] contiguous into rows of eight bits."""
    (count, width), pdl = x.shape, can_depend(x.device)
    block = triton.next_power_of_2(width)
    _narrow[(count,)](x, out.values, out.scale, width, block, pdl, num_warps=row_warps(block), launch_pdl=pdl)


def narrowed(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 [T, K] and scale [T] of x [T, K]: the naive twin of `narrow`, and how weights are narrowed when they are
    read."""
    largest = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=LEAST.value)
    most = torch.full_like(largest, E4M3_MAX.value)
    return (x.float() * (most / largest)).to(torch.float8_e4m3fn), (largest / most).squeeze(1)
