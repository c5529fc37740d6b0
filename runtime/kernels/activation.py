"""Activations, alone and gated: what stands between an MLP's two products. fp32 inside, one rounding at the end."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "squared_relu")


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """The activation of an fp32 block."""
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "relu":
        y = tl.where(x < 0.0, 0.0, x)
    else:
        y = tl.where(x < 0.0, 0.0, x * x)
    return y


@triton.jit
def _activation(x, out, width, ACTIVATION: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    x += row * width * (2 if GATED else 1)
    y = activated(tl.load(x + at, mask=inside).to(tl.float32), ACTIVATION)
    if GATED:
        y *= tl.load(x + width + at, mask=inside).to(tl.float32)
    tl.store(out + row * width + at, y.to(out.dtype.element_ty), mask=inside)


def activation(x: Tensor, name: str, out: Tensor, *, gated: bool) -> None:
    """x [T, I], or [T, 2 * I] where gated (gates first, then what they gate); out [T, I]; both contiguous."""
    num_rows, width = out.shape
    block = min(2048, triton.next_power_of_2(width))
    if num_rows:
        _activation[(num_rows, triton.cdiv(width, block))](x, out, width, name, gated, block)


def activation_reference(x: Tensor, name: str, *, gated: bool) -> Tensor:
    """The naive twin of `activation`."""
    wide = x.float()
    gate, up = wide.chunk(2, dim=-1) if gated else (wide, torch.ones((), device=x.device))
    if name == "silu":
        gate = torch.nn.functional.silu(gate)
    elif name == "gelu":
        gate = torch.nn.functional.gelu(gate)
    elif name == "gelu_tanh":
        gate = torch.nn.functional.gelu(gate, approximate="tanh")
    else:
        gate = torch.relu(gate) if name == "relu" else torch.relu(gate).square()
    return (gate * up).to(x.dtype)
