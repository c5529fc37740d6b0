"""The layer's operations by kernels: the fast twin of `NaiveOps`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.decode_attention import DecodeAttention
from ..kernels.embedding import embedding
from ..kernels.linear import Linears
from ..kernels.norm import Norm
from ..kernels.paging import Chunks, LayerCache, Rotary
from ..kernels.prefill_attention import prefill_attention
from ..kernels.rope_write import rope_write
from ..kernels.rows import Gathered
from ..kernels.weight import Weight
from ..model.config import ModelConfig
from ..model.layers import Layers
from .forward import Packed, Pass


class KernelOps:
    """`caches`: one a layer. In deterministic mode decode rows are attended like chunks of one token."""

    def __init__(
        self,
        model: ModelConfig,
        layers: Layers,
        caches: list[LayerCache],
        linears: Linears,
        decode: DecodeAttention | None,
    ) -> None:
        self._model, self._layers, self._caches = model, layers, caches
        self._linears, self._decode = linears, decode
        rope = layers.shared["rope"]
        self._rotary = [
            Rotary(rope["cos"], rope["sin"], packed.get("qk_norm", {}).get("weight"), model.norm_eps)
            for packed in layers.layers
        ]

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        shared = self._layers.shared
        table = shared["positions"]["weight"] if "positions" in shared else None
        return embedding(ids, shared["embed"]["weight"], positions, table)

    def norm_linear(self, x: Tensor, norm: Packed, linear: Packed, *, rows: Tensor | None = None) -> Tensor:
        return self._linears.norm_linear(x, self._norm(norm), _weight(linear), rows=rows)

    def norm_up(self, x: Tensor, norm: Packed, linear: Packed) -> Tensor:
        model = self._model
        return self._linears.norm_up(
            x, self._norm(norm), _weight(linear), model.activation, gated=model.gated_mlp
        )

    def linear_add(self, x: Tensor, linear: Packed, residual: Tensor) -> None:
        self._linears.linear_add(x, _weight(linear), residual)

    def attend(self, layer: int, qkv: Tensor, gathered: Gathered, size: Pass) -> Tensor:
        cache, rotary, window = self._caches[layer], self._rotary[layer], self._window(layer)
        heads = self._model.num_heads * self._model.head_dim
        out = torch.empty(size.num_tokens, heads, dtype=qkv.dtype, device=qkv.device)
        rows = 0 if self._decode is None else size.rows
        if rows:
            assert self._decode is not None
            slots, positions = gathered.slots[:rows], gathered.positions[:rows]
            self._decode(qkv[:rows], slots, positions, rotary, cache, out[:rows], window=window)
        if size.num_tokens > rows:
            slots, positions = gathered.slots[rows : size.num_tokens], gathered.positions[rows : size.num_tokens]
            rope_write(qkv[rows:], slots, positions, rotary, cache)
            chunks = Chunks(*(row[rows : size.num_samples] for row in gathered.spans))
            prefill_attention(qkv, chunks, cache, out, window=window)
        return out

    def _norm(self, packed: Packed) -> Norm:
        return Norm(packed["weight"], packed.get("bias"), self._model.norm_eps, self._model.norm == "rms")

    def _window(self, layer: int) -> int | None:
        return self._model.sliding_window if self._model.slides(layer) else None


def _weight(packed: Packed) -> Weight:
    return Weight(packed["weight"], packed.get("scale"), packed.get("bias"))
