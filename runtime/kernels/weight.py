"""The matrix of a linear layer: bf16 or fp32 as in checkpoints, or 8-bit values with a scale for each output channel.

8-bit weights have one meaning for every number of rows: the value is widened exactly (e4m3 and int8 both fit bf16),
the product is taken in the type of x, and the scale multiplies the fp32 accumulator. e4m3 scales are powers of two:
then value times scale fits bf16 exactly too, so a product of many rows may widen the weight first and leave the rest
to the library, and still multiplies by the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

E4M3_MAX = 448.0
INT8_MAX = 127.0


class Weight(NamedTuple):
    """values [N, K] contiguous: bf16, fp32, float8_e4m3fn or int8; scale [N] fp32 beside 8-bit values; bias [N]."""

    values: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def num_outputs(self) -> int:
        return self.values.size(0)

    @property
    def num_inputs(self) -> int:
        return self.values.size(1)


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K]; gives e4m3 [N, K] and scale [N] fp32, powers of two: each row's largest value becomes more than
    224 and at most 448."""
    bits = _scale(weight, E4M3_MAX).view(torch.int32)
    scale = ((bits + 0x007FFFFF) & 0x7F800000).view(torch.float32)  # up to the next power of two
    return (weight.float() / scale.unsqueeze(1)).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K]; gives int8 [N, K] and scale [N] fp32: each row's largest value becomes 127."""
    scale = _scale(weight, INT8_MAX)
    return (weight.float() / scale.unsqueeze(1)).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def _scale(weight: Tensor, largest: float) -> Tensor:
    return weight.abs().amax(dim=1).float().clamp_(min=1e-12) / largest


@triton.jit
def _widen(values, scale, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(values + row * width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, (value * tl.load(scale + row)).to(out.dtype.element_ty), mask=inside)


def widen(values: Tensor, scale: Tensor, out: Tensor) -> None:
    """Write 8-bit values [N, K] times their scale [N] to out [N, K]; exact for e4m3 and powers of two."""
    block = min(4096, triton.next_power_of_2(values.size(1)))
    _widen[(values.size(0), triton.cdiv(values.size(1), block))](values, scale, out, values.size(1), block)


def product_reference(x: Tensor, weight: Weight) -> Tensor:
    """The naive twin of every product: x [M, K] times the weight, in fp32, unrounded [M, N]."""
    y = x.float() @ weight.values.float().t()
    if weight.scale is not None:
        y = y * weight.scale
    return y if weight.bias is None else y + weight.bias.float()
