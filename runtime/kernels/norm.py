"""RMS and layer norms of rows, as they are or in eight bits. fp32 inside.

One program takes one row whole, so a row's result depends on nothing else. The rounding is transformers': an RMS norm
rounds the normed row to the storage type before its weight multiplies it, a layer norm rounds once, at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .dependent import can_depend
from .narrow import Rows, in_eight_bits


class Norm(NamedTuple):
    """A norm's weight [H], its bias [H] where it has one, and its kind: RMS, or layer norm."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    rms: bool


@triton.jit
def _norm(
    x, rows, weight, bias, out, narrow, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, RMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    if PDL:
        gdc_launch_dependents()
    scale = tl.load(weight + at, mask=inside, other=0.0)
    if PDL:
        gdc_wait()
    source = row if rows is None else tl.load(rows + row).to(tl.int64)
    wide = tl.load(x + source * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    if RMS:
        wide = wide * tl.rsqrt(tl.sum(wide * wide) / WIDTH + eps)
        y = wide.to(x.dtype.element_ty).to(tl.float32) * scale.to(tl.float32)
    else:
        centred = tl.where(inside, wide - tl.sum(wide) / WIDTH, 0.0)
        y = centred * tl.rsqrt(tl.sum(centred * centred) / WIDTH + eps) * scale.to(tl.float32)
        if bias is not None:
            y += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    if narrow is not None:
        y, by = in_eight_bits(y.to(x.dtype.element_ty).to(tl.float32))
        tl.store(narrow + row, by)
    tl.store(out + row * WIDTH + at, y.to(out.dtype.element_ty), mask=inside)


def norm(x: Tensor, parameters: Norm, out: Rows, rows: Tensor | None = None) -> None:
    """x [T, H] contiguous; out [T, H], or [len(rows), H] of the rows named by the int32 `rows`. What goes into eight
    bits is rounded to x's type before."""
    count, width = out.values.shape
    block, pdl = triton.next_power_of_2(width), can_depend(x.device)
    if count:
        _norm[(count,)](
            x, rows, parameters.weight, parameters.bias, out.values, out.scale, parameters.eps,
            width, block, parameters.rms, pdl, num_warps=min(16, max(1, block // 512)), launch_pdl=pdl,
        )  # fmt: skip


def norm_reference(x: Tensor, parameters: Norm, rows: Tensor | None = None) -> Tensor:
    """The naive twin of `norm`."""
    if rows is not None:
        x = x.index_select(0, rows)
    wide = x.float()
    if not parameters.rms:
        bias = None if parameters.bias is None else parameters.bias.float()
        return torch.layer_norm(wide, [x.size(1)], parameters.weight.float(), bias, parameters.eps).to(
            x.dtype
        )
    normed = wide * wide.square().mean(-1, keepdim=True).add(parameters.eps).rsqrt()
    return normed.to(x.dtype) * parameters.weight
