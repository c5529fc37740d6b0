"""The matrix of a linear layer: bf16 or fp32 as in checkpoints, or 8 bits with a scale for each output channel.

A weight in 8 bits has one meaning for every number of rows. With e4m3 each row of x is narrowed by itself (narrow.py),
eight bits are multiplied by eight bits and summed in fp32, and both scales multiply the sum. int8 is read and no more:
x stays as it is, the whole numbers are widened to its type, which loses nothing, and the scale multiplies the sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .narrow import narrowed


class Weight(NamedTuple):
    """values [N, K] contiguous: bf16, fp32, float8_e4m3fn or int8; scale [N] fp32 beside 8-bit values; bias [N]."""

    values: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def num_outputs(self) -> int:
        return self.values.size(0)

    @property
    def narrows(self) -> bool:
        """Whether the rows that it multiplies go in with 8 bits too."""
        return self.values.dtype == torch.float8_e4m3fn


def product_reference(x: Tensor, weight: Weight) -> Tensor:
    """The naive twin of every product: x [M, K] times the weight, in fp32, unrounded [M, N]."""
    if weight.narrows:
        values, scale = narrowed(x)
        y = values.float() @ weight.values.float().t() * scale.unsqueeze(1)
    else:
        y = x.float() @ weight.values.float().t()
    if weight.scale is not None:
        y = y * weight.scale
    return y if weight.bias is None else y + weight.bias.float()
