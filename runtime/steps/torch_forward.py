"""The forward pass through torch: one compiled call a batch, for every family, number type and processor.

Where own kernels compute instead (native/), this is their naive twin.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..batch import Capacity
from ..config import EngineConfig
from ..model.config import ModelConfig
from ..model.layers import Weights, load_layers
from ..model.program import Program
from ..weights.manifest import TileChoice
from .forward import Computed, Run, scrub_pages, zero_pages
from .kernels import Kernels, find_tile
from .layout import Layout, LayoutBuilder, Span, chunk_spans, decode_spans
from .machine_tiles import known_tile
from .memory import PAGE_TOKENS, MemoryPlan
from .slots import Int64s, Slots


class TorchForward:
    """`Forward`. `compiled=False` runs the same source as Python: its naive twin."""

    def __init__(
        self,
        model: ModelConfig,
        weights: Weights,
        config: EngineConfig,
        kernels: Kernels,
        plan: MemoryPlan,
        slots: Slots,
        tiles: Sequence[TileChoice] = (),
        *,
        compiled: bool = True,
    ) -> None:
        """`tiles` were found by an earlier trial."""
        self._model, self._floor, self._slots = model, kernels.floor, slots
        self._program = Program(kernels.linears, compiled=compiled)
        pack, pack_rounded = kernels.linears.pack, kernels.pack_rounded
        self._layers = load_layers(model, weights, pack, kernels.dtype, plan.context, pack_rounded)
        most = config.max_batch_tokens or Capacity(num_pages=1, page_size=1, max_rows=1).max_batch_tokens
        self._tile = known_tile(kernels, most, tiles) or find_tile(self._program, model, kernels, most)
        numbers = 2 * model.num_kv_heads * PAGE_TOKENS * model.head_dim
        pools = [zero_pages(plan.num_pages, numbers, kernels.dtype) for _ in range(model.num_layers)]
        self._pages = pools
        self._pools = [pool.view(-1, model.head_dim) for pool in pools]
        self._layouts = LayoutBuilder(slots, model.num_kv_heads, model.sliding_window, kernels.dtype)
        self._slides = [model.slides(layer) for layer in range(model.num_layers)]

    def compute(self, runs: Sequence[Run], chosen: Sequence[int], num_sampled: int) -> Computed:
        layout = self._layout(runs)
        places = np.concatenate([layout.last[run.slot] + np.arange(1 - run.num_tokens, 1) for run in runs])
        hidden, sums = self._run(layout, torch.from_numpy(places[list(chosen)]))
        finite = torch.isfinite(sums[torch.from_numpy(places)])
        return Computed(hidden, self.logits(hidden[:num_sampled]), finite)

    def logits(self, hidden: Tensor) -> Tensor:
        rows = len(hidden)
        if rows == 0:
            return torch.empty(0, self._model.vocab_size)
        hidden = pad(hidden, (0, 0, 0, self._tile.padding(rows)))
        logits: Tensor = self._program.linear(hidden, self._layers.head, self._tile.most)
        return logits[:rows].float()

    def scrub(self, pages: Int64s) -> None:
        scrub_pages(self._pages, pages)

    def close(self) -> None:
        self._pages.clear()
        self._pools.clear()
        del self._layers, self._program

    def _layout(self, runs: Sequence[Run]) -> Layout:
        spans: list[Span] = []
        decodes = [(run.slot, run.start) for run in runs if run.num_tokens == 1]
        for slot, start, count in runs:
            if count > 1:
                spans += chunk_spans(slot, start, count, self._model.num_heads)
        padding = self._tile.padding(sum(run.num_tokens for run in runs))
        decodes += [(self._slots.idle, 0)] * padding
        if decodes:
            spans += decode_spans(*np.array(decodes, dtype=np.int64).T)
        return self._layouts.build(spans)

    def _run(self, layout: Layout, chosen: Tensor) -> tuple[Tensor, Tensor]:
        model = self._model
        hidden, sums = self._program.forward(
            layout.tokens,
            layout.positions,
            layout.writes,
            chosen,
            layout.spans,
            layout.tables,
            layout.masks,
            layout.sliding_masks,
            self._layers.shared,
            self._layers.layers,
            self._pools,
            self._slides,
            model.num_heads,
            model.num_kv_heads,
            PAGE_TOKENS,
            model.norm_eps,
            model.norm == "rms",
            model.activation,
            model.gated_mlp,
            self._tile.most,
            self._floor,
        )
        return hidden, sums
