"""Activations, alone and gated: what stands between an MLP's two products. fp32 inside, one rounding at the end; or
rows in eight bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .dependent import can_depend
from .narrow import Rows, in_eight_bits

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
def _activation(
    x, out, narrow, width,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x += row * width * (2 if GATED else 1)
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION is not None:
        y = activated(y, ACTIVATION)
    if GATED:
        y *= tl.load(x + width + at, mask=inside, other=0.0).to(tl.float32)
    if narrow is not None:
        y, by = in_eight_bits(y.to(x.dtype.element_ty).to(tl.float32))
        tl.store(narrow + row, by)
    tl.store(out + row * width + at, y.to(out.dtype.element_ty), mask=inside)


def activation(x: Tensor, name: str | None, out: Rows, *, gated: bool) -> None:
    """x [T, I], or [T, 2 * I] where gated (gates first, then what they gate); out [T, I]; both contiguous. What goes
    into eight bits is rounded to x's type before, by one program a row; without a name that is all that happens."""
    (num_rows, width), is_narrow = out.values.shape, out.scale is not None
    block = triton.next_power_of_2(width)
    block, pdl = (block, can_depend(x.device)) if is_narrow else (min(2048, block), False)
    if num_rows:
        _activation[(num_rows, triton.cdiv(width, block))](
            x, out.values, out.scale, width, name, gated, block, pdl,
            num_warps=min(16, max(1, block // 512)), launch_pdl=pdl,
        )  # fmt: skip


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
