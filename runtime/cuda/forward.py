"""One pass through the model: the rows that decode and the chunks of prompts, as one flat list of tokens.

Every tensor that it touches lies at a fixed address, and nothing here depends on a length or a token, only on the
pass's size. So the same call computes at once, or is captured as a graph and replayed for any batch of that size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..kernels.rows import Gathered, Slotwise, gather, publish
from ..kernels.scores import Scorer, Scores
from ..model.layers import Layers
from .sizes import Pass

Packed = dict[str, Tensor]


class Ops(Protocol):
    """What a layer is made of. x, residual [T, hidden]. Results are fresh tensors: under capture they lie in the
    graphs' own pool."""

    def begin(self, gathered: Gathered, size: Pass) -> None:
        """Once a pass, before its first layer."""
        ...

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor: ...

    def norm_linear(self, x: Tensor, norm: Packed, linear: Packed, *, rows: Tensor | None = None) -> Tensor:
        """linear(norm(x)), of the rows named by the int32 `rows`."""
        ...

    def linear_add(self, x: Tensor, linear: Packed, residual: Tensor) -> None:
        """residual += linear(x)."""
        ...

    def mlp(self, x: Tensor, norm: Packed, up: Packed, down: Packed) -> None:
        """x += down(the activation of up(norm(x))), gated where the model's is."""
        ...

    def attend(self, layer: int, qkv: Tensor, gathered: Gathered, size: Pass) -> Tensor:
        """Turn queries and keys by their positions, write keys and values into the layer's pages, attend."""
        ...


class Sampler(Protocol):
    """logits [R, vocab], slots and positions [R] int32: tokens and flags [R] int32, at fixed addresses."""

    def sample(
        self, logits: Tensor, slots: Tensor, positions: Tensor, *, cuts: bool, full: bool
    ) -> tuple[Tensor, Tensor]: ...

    @property
    def scorer(self) -> Scorer: ...


class Forward:
    def __init__(
        self, layers: Layers, ops: Ops, sampler: Sampler, state: Slotwise, gathered: Gathered, ring: Tensor
    ) -> None:
        self._layers, self._ops, self._sampler = layers, ops, sampler
        self._state, self._gathered, self._ring = state, gathered, ring

    @torch.inference_mode()
    def run(self, size: Pass) -> Tensor:
        """Compute, sample and publish one pass. Enqueues work; waits for none. Gives the hidden states [T, hidden]
        before the last norm."""
        gathered = self._gathered
        gather(self._state, gathered, size.rows, size.num_tokens, size.chunks)
        hidden = self._hidden(size)
        chosen = gathered.chosen[: size.num_samples]
        logits = self._ops.norm_linear(hidden, self._layers.shared["norm"], self._layers.head, rows=chosen)
        slots = gathered.row_slots[: size.num_samples]
        positions = gathered.draw_positions[: size.num_samples]
        tokens, flags = self._sampler.sample(logits, slots, positions, cuts=size.cuts, full=size.full)
        publish(tokens, flags, gathered, self._state, self._ring, size.num_samples)
        return hidden

    @property
    def scores(self) -> Scores:
        """Of the last `full` pass's rows, until the next."""
        return self._sampler.scorer.scores

    @torch.inference_mode()
    def score_prompt(self, hidden: Tensor, slot: int, tokens: Tensor) -> Scores:
        """hidden [n, hidden] before the last norm; the n `tokens` int32 that follow them in a slot's prompt."""
        rows = torch.arange(len(hidden), dtype=torch.int32, device=hidden.device)
        norm, head = self._layers.shared["norm"], self._layers.head
        logits = self._ops.norm_linear(hidden.contiguous(), norm, head, rows=rows)
        return self._sampler.scorer.score(logits, torch.full_like(rows, slot), tokens, prompt=True)

    def _hidden(self, size: Pass) -> Tensor:
        tokens, ops, gathered = size.num_tokens, self._ops, self._gathered
        ops.begin(gathered, size)
        x = ops.embed(gathered.ids[:tokens], gathered.positions[:tokens])
        for i, layer in enumerate(self._layers.layers):
            qkv = ops.norm_linear(x, layer["attention_norm"], layer["qkv"])
            ops.linear_add(ops.attend(i, qkv, gathered, size), layer["out"], x)
            ops.mlp(x, layer["mlp_norm"], layer["up"], layer["down"])
        return x
