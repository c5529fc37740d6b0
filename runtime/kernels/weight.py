"""The matrix of a linear layer: bf16 or fp32 as in checkpoints, or e4m3 with a scale for each output channel.

An 8-bit weight has one meaning for every number of rows: each row of x is narrowed by itself (narrow.py), eight bits
are multiplied by eight bits and summed in fp32, and both scales multiply the sum.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .narrow import narrowed


class Weight(NamedTuple):
    """values [N, K] contiguous: bf16, fp32 or float8_e4m3fn; scale [N] fp32 beside 8-bit values; bias [N]."""

    values: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def num_outputs(self) -> int:
        return self.values.size(0)


def product_reference(x: Tensor, weight: Weight) -> Tensor:
    """The naive twin of every product: x [M, K] times the weight, in fp32, unrounded [M, N]."""
    if weight.scale is None:
        y = x.float() @ weight.values.float().t()
    else:
        values, scale = narrowed(x)
        y = values.float() @ weight.values.float().t() * scale.unsqueeze(1) * weight.scale
    return y if weight.bias is None else y + weight.bias.float()
