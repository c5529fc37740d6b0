"""The layer's operations in plain torch, on any device: the naive twin of the kernels, and slow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..kernels.rows import Gathered
from ..kernels.weight import Weight, product_reference
from ..model.config import ModelConfig
from ..model.forward import activate, norm, rotate
from ..model.layers import Layers
from .forward import Packed
from .sizes import Pass


class NaiveOps:
    """`pools`: by layer, [num_pages, 2, kv_heads, page, head_dim]; `tables` [slots, pages] int32."""

    def __init__(self, model: ModelConfig, layers: Layers, pools: list[Tensor], tables: Tensor) -> None:
        self._model, self._layers, self._pools, self._tables = model, layers, pools, tables

    def begin(self, gathered: Gathered, size: Pass) -> None: ...

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self._layers.shared["embed"]["weight"][ids.long()]
        if "positions" in self._layers.shared:
            x = x + self._layers.shared["positions"]["weight"][positions.long()]
        return x

    def norm_linear(
        self, x: Tensor, weights: Packed, packed: Packed, *, rows: Tensor | None = None
    ) -> Tensor:
        x = x if rows is None else x[rows.long()]
        normed = norm(x, weights, self._model.norm_eps, self._model.norm == "rms")
        return _linear(normed, packed)

    def linear_add(self, x: Tensor, packed: Packed, residual: Tensor) -> None:
        residual += _linear(x, packed)

    def mlp(self, x: Tensor, weights: Packed, up: Packed, down: Packed) -> None:
        ups = self.norm_linear(x, weights, up)
        gates, *others = ups.chunk(2 if self._model.gated_mlp else 1, dim=1)
        activated = activate(gates, self._model.activation)
        self.linear_add(activated * others[0] if others else activated, down, x)

    def attend(self, layer: int, qkv: Tensor, gathered: Gathered, size: Pass) -> Tensor:
        model, shared = self._model, self._layers.shared
        heads, kv_heads, dim = model.num_heads, model.num_kv_heads, model.head_dim
        tokens = size.num_tokens
        positions, slots = gathered.positions[:tokens].long(), gathered.slots[:tokens].long()
        qkv = qkv.view(tokens, heads + 2 * kv_heads, dim)
        qk = qkv[:, : heads + kv_heads]
        if "qk_norm" in self._layers.layers[layer]:
            qk.copy_(norm(qk, self._layers.layers[layer]["qk_norm"], model.norm_eps, rms=True))
        turned = qk.float()
        rotate(turned, shared["rope"]["cos"][positions][:, None], shared["rope"]["sin"][positions][:, None])
        qk.copy_(turned)
        pool = self._pools[layer]
        page = pool.size(3)
        pages = self._tables[slots, positions // page].long()
        pool[pages, 0, :, positions % page] = qkv[:, heads : heads + kv_heads]
        pool[pages, 1, :, positions % page] = qkv[:, heads + kv_heads :]
        out = qkv.new_zeros(tokens, heads * dim)
        for slot, start, first, count in gathered.spans[:, : size.num_samples].t().tolist():
            if count and slot < len(self._tables) - 1:
                span = slice(first, first + count)
                out[span] = self._span(layer, qkv[span, :heads], slot, start)
        return out

    def _span(self, layer: int, q: Tensor, slot: int, start: int) -> Tensor:
        pool, model = self._pools[layer], self._model
        count, length = len(q), start + len(q)
        pages = self._tables[slot, : -(-length // pool.size(3))].long()
        k, v = pool[pages].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length].float()
        group = model.num_heads // model.num_kv_heads
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = (q.float().transpose(0, 1) @ k.transpose(1, 2)) * model.head_dim**-0.5
        at, key = torch.arange(start, length)[:, None], torch.arange(length)
        hidden = key > at
        if model.slides(layer):
            assert model.sliding_window is not None
            hidden |= key <= at - model.sliding_window
        scores = scores.masked_fill(hidden.to(scores.device), float("-inf")).softmax(-1)
        attended: Tensor = (scores @ v).transpose(0, 1).reshape(count, -1).to(q.dtype)
        return attended


def _linear(x: Tensor, packed: Packed) -> Tensor:
    if "scale" not in packed:
        return linear(x, packed["weight"], packed.get("bias"))
    return product_reference(x, Weight(packed["weight"], packed["scale"], packed.get("bias"))).to(x.dtype)
