"""Linear layers by torch's own matrix product: where oneDNN is absent."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """weight [out, in]."""
    packed = {"weight": weight.contiguous()}
    if bias is not None:
        packed["bias"] = bias
    return packed


def linear(x: Tensor, weights: dict[str, Tensor], tile: int) -> Tensor:
    """x [tokens, in], at least two, at most `tile` at a time; gives [tokens, out]."""
    weight, bias = weights["weight"], weights.get("bias")
    return torch.cat([torch.ops.aten.linear(part, weight, bias) for part in torch.split(x, tile)])
