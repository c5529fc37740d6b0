"""Linear layers laid out for tiles: a pure function of the rows, so that what it gives may be stored and mapped.

A tile holds 16 outputs: 16 lines of 64 bytes, and in each line one 32-bit word of every output (two bfloat16 or four
int8 of neighbouring inputs). Two tiles, of 32 outputs, follow each other for every 64 bytes of inputs, then come the
next inputs of the same outputs, then the next 32 outputs. What is missing at the end is filled up with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..model.linear_int8 import rounded

PANEL = 32
"""Outputs that lie together."""
LINE_BYTES = 64


def pack(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """weight [out, in], computed with in bfloat16."""
    layer = {"weight": tiled(weight.to(torch.bfloat16))}
    return layer if bias is None else layer | {"bias": filled(bias)}


def pack_int8(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """weight [out, in] of any float type, rounded by output."""
    return pack_rounded(*rounded(weight), bias)


def pack_rounded(values: Tensor, scale: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """What `rounded` gave. The activations' 1/127 is folded into the scale."""
    layer = {"weight": tiled(values), "scale": filled(scale / 127.0)}
    return layer if bias is None else layer | {"bias": filled(bias)}


def tiled(rows: Tensor) -> Tensor:
    """rows [out, in], bfloat16 or int8; gives 32-bit words [panels, steps, 2, 16, 16], in this order in memory."""
    rows = pad(
        rows, (0, -rows.size(1) % (LINE_BYTES // rows.itemsize), 0, -rows.size(0) % PANEL)
    ).contiguous()
    words = rows.view(torch.int32).view(len(rows) // PANEL, 2, 16, -1, 16)
    return words.permute(0, 3, 1, 4, 2).contiguous()


def filled(values: Tensor) -> Tensor:
    """values [out] as float32, to the end of the last panel."""
    return pad(values.float(), (0, -len(values) % PANEL)).contiguous()
