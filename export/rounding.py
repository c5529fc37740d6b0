"""A matrix in 8 or 4 bits: what is stored, and what it stands for. The runtime's reader is the other half
(`runtime/weights/quantized_weights.py`)."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor

from ..runtime.model.linear_int8 import rounded
from ..runtime.weights.manifest import Narrowing

FP8_MAX = 448.0
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Of an int4 group's scale: a few clipped outliers cost less than a coarse grid."""


class Rounded(msgspec.Struct, frozen=True):
    """`stored`: tensors in the order of their slots. `dense`: what they stand for, float32 [out, in]. `scale`: of the
    whole matrix, where it has one."""

    stored: tuple[Tensor, ...]
    dense: Tensor
    scale: float = 1.0


class Rounding(msgspec.Struct, frozen=True):
    """How a model's matrices are narrowed. `group` and `scale_dtype` are for int4. `whole`, for fp8: one scale for a
    matrix and one, known beforehand, for what it is multiplied by, where else each row has its own."""

    narrowing: Narrowing
    group: int
    scale_dtype: torch.dtype
    whole: bool = False

    def matrix(self, weight: Tensor, importance: Tensor) -> Rounded:
        """weight float32 [out, in]; importance [in]: the mean square of each input, where errors weigh more."""
        if self.narrowing == "int8":
            return _int8(weight)
        if self.narrowing == "fp8":
            return _whole_fp8(weight) if self.whole else _fp8(weight)
        return self._int4(weight, importance)

    def inputs(self, x: Tensor, largest: float) -> Tensor:
        """What a matrix is multiplied by, as the CPU's int8 kernel sees it: rounded row by row; or, with one scale for
        all, by the `largest` that calibration saw."""
        if self.whole:
            return as_fp8(x, fp8_scale(largest))
        if self.narrowing != "int8":
            return x
        peak = x.abs().amax(-1, keepdim=True).clamp_min(1e-12)
        return (x * (127.0 / peak)).add_(0.5).floor_().mul_(peak / 127.0)

    def _int4(self, weight: Tensor, importance: Tensor) -> Rounded:
        groups = weight.view(len(weight), -1, self.group)
        heed = importance.view(-1, self.group)
        widest = torch.maximum(groups.amax(-1) / 7.0, groups.amin(-1) / -8.0).clamp_min_(1e-12)
        best = torch.full_like(widest, torch.inf)
        scale = widest
        for shrink in SHRINKS:
            tried = (widest * shrink).to(self.scale_dtype).float()
            error = _nearest(groups, tried).mul_(tried[..., None]).sub_(groups).square_().mul_(heed).sum(-1)
            scale = torch.where(error < best, tried, scale)
            best = torch.minimum(error, best)
        values = _nearest(groups, scale)
        dense = (values * scale[..., None]).flatten(1)
        return Rounded((packed(values.flatten(1)), scale.to(self.scale_dtype)), dense)


def packed(values: Tensor) -> Tensor:
    """[out, in] from -8 to 7, to int32 [out, in / 8]: eight columns each, the lowest bits first."""
    nibbles = (values.to(torch.int64) + 8).view(len(values), -1, 8)
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def fp8_scale(largest: float) -> float:
    """What numbers of 8 bits are multiplied by; 1 where all are 0."""
    return largest / FP8_MAX or 1.0


def as_fp8(x: Tensor, scale: float) -> Tensor:
    """As 8 bits would give it back."""
    return (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * scale


def _nearest(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale.clamp_min(1e-30)[..., None]).round_().clamp_(-8, 7)


def _int8(weight: Tensor) -> Rounded:
    values, scale = rounded(weight)
    return Rounded((values, scale[:, None]), values.float().mul_(scale[:, None]))


def _fp8(weight: Tensor) -> Rounded:
    scale = weight.abs().amax(1, keepdim=True).clamp_min_(1e-12) / FP8_MAX
    values = (weight / scale).to(torch.float8_e4m3fn)
    return Rounded((values, scale), values.float().mul_(scale))


def _whole_fp8(weight: Tensor) -> Rounded:
    scale = fp8_scale(float(weight.abs().max()))
    values = (weight / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return Rounded((values,), values.float().mul_(scale), scale)
