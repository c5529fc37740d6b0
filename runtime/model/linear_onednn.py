"""Linear layers by oneDNN with weights laid out once for its kernels: bfloat16 and float32."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """weight [out, in]. The packed weight is opaque; only `linear` reads it."""
    packed = {"weight": torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)}
    if bias is not None:
        packed["bias"] = bias
    return packed


def linear(x: Tensor, weights: dict[str, Tensor], tile: int) -> Tensor:
    """x [tokens, in], at least two, at most `tile` at a time; gives [tokens, out]."""
    weight, bias = weights["weight"], weights.get("bias")
    parts = [
        torch.ops.mkldnn._linear_pointwise(part, weight, bias, "none", [], "")
        for part in torch.split(x, tile)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
