"""Rotary position tables, and the order of a head's elements that suits them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import ModelConfig, RopeScaling

torch.zeros(1, device="cpu").cos()
"""The process's first call of MKL's vector functions is made here, by one thread, since an import is. MKL 2024.2 looks
at the processor in its first call and keeps the number that it reads before the one that this stands for: a second
thread that comes in between is given kernels of half the digits, and the last bits of a table differ from one process
on a busy machine to another."""


def rotary_tables(model: ModelConfig, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """`cos` and `sin` [length, head_dim]; `sin` is negative in the first half, as the pairing i, i + dim / 2 needs. By
    way of float64: rounded once."""
    half = model.head_dim // 2
    angles = torch.zeros(length, half)
    if model.rope_theta is not None:
        frequencies = _frequencies(model.rope_theta, rotary_dim(model), model.rope_scaling)
        angles[:, : len(frequencies)] = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    angles = angles.double()
    cos, sin = angles.cos().float(), angles.sin().float()
    return {"cos": torch.cat([cos, cos], 1).to(dtype), "sin": torch.cat([-sin, sin], 1).to(dtype)}


def rotary_dim(model: ModelConfig) -> int:
    return int(model.head_dim * model.rotary_fraction) // 2 * 2


def head_order(model: ModelConfig) -> Tensor:
    """Where each element of a head comes from, so that a pair lies half a head apart also where only the first part
    of it turns. Queries and keys are reordered alike, which leaves their products as they were."""
    turned, dim = rotary_dim(model) // 2, model.head_dim
    still = list(range(2 * turned, dim))
    cut = dim // 2 - turned
    return torch.tensor([*range(turned), *still[:cut], *range(turned, 2 * turned), *still[cut:]])


def _frequencies(theta: float, dim: int, scaling: RopeScaling | None) -> Tensor:
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return frequencies * (blend + (1 - blend) / scaling.factor)
