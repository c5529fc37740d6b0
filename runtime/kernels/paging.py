"""What attention kernels share: a layer's pages, its rotary tables, and chunks of prompts. Tensors by reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerCache:
    """A layer's keys and values in pages, and whose pages they are.

    pool [num_pages, 2, kv_heads, page, head_dim], keys then values, in bfloat16, float32 or float8_e4m3fn (stored
    value times scale is the value); tables [slots, pages_per_row] int32, where the last slot is the idle one.
    """

    pool: Tensor
    tables: Tensor
    k_scale: float = 1.0
    v_scale: float = 1.0

    @property
    def idle(self) -> int:
        return self.tables.shape[0] - 1

    @property
    def num_kv_heads(self) -> int:
        return self.pool.shape[2]

    @property
    def page(self) -> int:
        return self.pool.shape[3]

    @property
    def head_dim(self) -> int:
        return self.pool.shape[4]

    @property
    def log2_scale(self) -> float:
        """What turns a product with a stored key into a score in units of log2."""
        return self.k_scale * math.log2(math.e) / math.sqrt(self.head_dim)

    def num_q_heads(self, qkv: Tensor) -> int:
        """How many query heads the rows of qkv [tokens, (q_heads + 2 * kv_heads) * head_dim] hold."""
        return qkv.shape[1] // self.head_dim - 2 * self.num_kv_heads


@dataclass(frozen=True, slots=True)
class Rotary:
    """How queries and keys turn: cos and sin [context, head_dim] float32, the sign inside sin. With `norm`
    [q_heads + kv_heads, head_dim], weights of a root-mean-square norm over each head that comes first."""

    cos: Tensor
    sin: Tensor
    norm: Tensor | None = None
    eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class Chunks:
    """Runs of consecutive tokens, one a row: tensors [chunks] int32. A chunk's tokens lie at
    [offset, offset + count) of the step and at positions [start, start + count) of their slot. Padding counts 0."""

    slots: Tensor
    starts: Tensor
    offsets: Tensor
    counts: Tensor
