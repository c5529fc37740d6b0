"""Rows in eight bits: e4m3 values, and for each row the scale that makes its largest one 448.

A row is narrowed by itself and in the same way whoever computes it and however many rows there are, so neither its
values nor its scale depend on its neighbours. Weights are rows of the same kind, one for each output, whose scales are
chosen with more care.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TRIED = 8
"""Scales of a weight's row, within a factor of 2."""
ROWS_AT_ONCE = 1024
"""Of a weight that is narrowed: what is needed meanwhile stays small."""


class Rows(NamedTuple):
    """values [T, K] contiguous, as they are computed with; or e4m3, and beside them scale [T] fp32."""

    values: Tensor
    scale: Tensor | None = None


@triton.jit
def in_eight_bits(row):
    """An fp32 row, 0 past its end: its values as e4m3 will hold them, and their scale."""
    largest = tl.maximum(tl.max(tl.abs(row)), 1e-12)
    return row * tl.div_rn(448.0, largest), tl.div_rn(largest, 448.0)


def narrowed(x: Tensor, most: Tensor | float = 448.0) -> tuple[Tensor, Tensor]:
    """e4m3 [T, K] and scale [T] of x [T, K], whose largest values become `most`, of each row [T, 1] or of all: the
    naive twin of the kernels that narrow."""
    largest = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12)
    most = torch.ones_like(largest) * most
    return (x.float() * (most / largest)).to(torch.float8_e4m3fn), (largest / most).squeeze(1)


def narrowed_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 [N, K] and scale [N] of weight [N, K]: of the scales that are tried for a row, the one that loses least."""
    values, scales = zip(*map(_least_lost, weight.split(ROWS_AT_ONCE)), strict=True)
    return torch.cat(values), torch.cat(scales)


def _least_lost(rows: Tensor) -> tuple[Tensor, Tensor]:
    wide = rows.float()
    most = 448.0 * 2 ** (-torch.arange(TRIED, device=rows.device) / TRIED)
    lost = [
        (values.float().mul_(scale.unsqueeze(1)) - wide).norm(dim=1)
        for values, scale in (narrowed(wide, each) for each in most)
    ]
    return narrowed(wide, most[torch.stack(lost).argmin(dim=0)].unsqueeze(1))
