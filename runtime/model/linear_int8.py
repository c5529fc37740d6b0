"""Linear layers in 8 bits: one scale a row of activations, one a channel of weights, products summed exactly.

oneDNN's fast kernels take unsigned activations, so a row is rounded to [1, 255] about zero point 128. Its scale is
applied after the integer product, which makes a row's result independent of its batch-mates to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """weight [out, in] of any float type, rounded to [-127, 127] by channel. The packed weight is opaque."""
    return pack_rounded(*rounded(weight), bias)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] from -127 to 127, and the scale of each channel, float32 [out]."""
    wide = weight.float()
    scale = wide.abs().amax(1).clamp_min_(1e-12) / 127.0
    return (wide / scale[:, None]).round_().to(torch.int8), scale


def pack_rounded(values: Tensor, scale: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """What `rounded` gave, ready for `linear`."""
    packed = {
        "weight": torch.ops.onednn.qlinear_prepack(values, None),
        "scale": scale / 127.0,  # the activations' 1/127 is folded in
        "zero": torch.zeros(len(scale), dtype=torch.int64),
    }
    if bias is not None:
        packed["bias"] = bias
    return packed


def linear(x: Tensor, weights: dict[str, Tensor], tile: int) -> Tensor:
    """x [tokens, in]; gives [tokens, out] of the same type. `tile` is for float kernels: integers sum exactly."""
    peak = x.abs().amax(-1, True).clamp_min_(1e-12)
    rounded = x.float().mul(127.0 / peak.float()).add_(128.5).to(torch.uint8)
    weight, scale, zero = weights["weight"], weights["scale"], weights["zero"]
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        rounded, 1.0, 128, weight, scale, zero, None, 1.0, 0, x.dtype, "none", [], ""
    )
    out.mul_(peak)
    return out.add_(weights["bias"]) if "bias" in weights else out
