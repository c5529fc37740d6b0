"""A text's windows through a model's layers, as plain torch in float32: the arithmetic of calibration.

It shares with the runtime the norm, the rotary tables and the activations, and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..runtime.model.config import ModelConfig
from ..runtime.model.forward import activate, norm, rotate
from ..runtime.model.rope import head_order, rotary_tables

Norm = dict[str, Tensor]


class Windows:
    """Token ids [windows, length], and what all layers share: positions and masks."""

    def __init__(self, model: ModelConfig, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        length = tokens.size(1)
        rope = rotary_tables(model, length, torch.float32)
        self._cos, self._sin = rope["cos"], rope["sin"]
        order = head_order(model)
        self._order = order
        self._back = order.argsort()
        to, at = torch.arange(length), torch.arange(length)[:, None]
        self._causal = to <= at
        self._sliding = self._causal & (to > at - (model.sliding_window or length))

    def norm(self, x: Tensor, weights: Norm) -> Tensor:
        return norm(x, weights, self.model.norm_eps, self.model.norm == "rms")

    def heads(self, qkv: Tensor, qk_norm: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """qkv [rows, out] of one window to query, key and value [heads, length, dim], turned."""
        model = self.model
        q_rows, kv_rows = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        q, k, v = (
            part.unflatten(1, (-1, model.head_dim)).transpose(0, 1)
            for part in qkv.split([q_rows, kv_rows, kv_rows], 1)
        )
        if qk_norm is not None:
            q, k = (
                norm(part, {"weight": w}, model.norm_eps, True)
                for part, w in zip((q, k), qk_norm, strict=True)
            )
        return self._turn(q), self._turn(k), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Gives [length, heads * dim]."""
        model = self.model
        mask = self._sliding if model.slides(layer) else self._causal
        out = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, enable_gqa=model.num_heads != model.num_kv_heads
        )
        return out[0].transpose(0, 1).flatten(1)

    def _turn(self, x: Tensor) -> Tensor:
        if self.model.rope_theta is None:
            return x
        turned = x[..., self._order].contiguous()
        rotate(turned, self._cos, self._sin)
        return turned[..., self._back]

    def activate(self, gate: Tensor) -> Tensor:
        return activate(gate, self.model.activation)
