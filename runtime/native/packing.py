"""Linear layers laid out for tiles: a pure function of the rows, so that what it gives may be stored and mapped.

A tile holds 16 outputs: 16 lines of 64 bytes, and in each line one 32-bit word of every output (two bfloat16 or four
int8 of neighbouring inputs). Two tiles, of 32 outputs, follow each other for every 64 bytes of inputs, then come the
next inputs of the same outputs, then the next 32 outputs. Outputs that are missing at the end are zeros.
"""

from __future__ import annotations

from ctypes import CDLL

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..model.config import ModelConfig
from ..model.linear_int8 import rounded

PANEL = 32
"""Outputs that lie together."""
LINE_BYTES = 64


class Packer:
    """Packs the layers of one model, one after the other into one array: numpy asks for huge pages, and reading
    weights through small ones takes a third longer."""

    def __init__(self, kernels: CDLL, num_bytes: int) -> None:
        self._kernels = kernels
        space = torch.from_numpy(np.empty(num_bytes + LINE_BYTES, dtype=np.uint8))
        self._free = space[-space.data_ptr() % LINE_BYTES :]

    def pack(self, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        """weight [out, in], computed with in bfloat16."""
        layer = {"weight": self._placed(weight.to(torch.bfloat16))}
        return layer if bias is None else layer | {"bias": filled(bias)}

    def pack_int8(self, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        """weight [out, in] of any float type, rounded by output."""
        return self.pack_rounded(*rounded(weight), bias)

    def pack_rounded(self, values: Tensor, scale: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        """What `rounded` gave. The activations' 1/127 is folded into the scale."""
        layer = {"weight": self._placed(values), "scale": filled(scale / 127.0)}
        return layer if bias is None else layer | {"bias": filled(bias)}

    def _placed(self, rows: Tensor) -> Tensor:
        """rows [out, in], bfloat16 or int8; gives the bytes of its tiles."""
        rows, (num_rows, row_bytes) = rows.contiguous(), (len(rows), rows.size(1) * rows.itemsize)
        assert row_bytes % LINE_BYTES == 0
        size = -(-num_rows // PANEL) * PANEL * row_bytes
        placed, self._free = self._free[:size], self._free[size:]
        self._kernels.jitney_pack(rows.data_ptr(), num_rows, row_bytes, placed.data_ptr())
        return placed


def tiled_bytes(model: ModelConfig, itemsize: int) -> int:
    """Of all linear layers."""
    hidden, inner = model.hidden_size, model.intermediate_size
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    matrices = [
        (heads + 2 * kv, hidden),
        (hidden, heads),
        (inner * (1 + model.gated_mlp), hidden),
        (hidden, inner),
    ]
    sizes = matrices * model.num_layers + [(model.vocab_size, hidden)]
    return sum(-(-rows // PANEL) * PANEL * columns * itemsize for rows, columns in sizes)


def filled(values: Tensor) -> Tensor:
    """values [out] as float32, to the end of the last panel."""
    return pad(values.float(), (0, -len(values) % PANEL)).contiguous()
