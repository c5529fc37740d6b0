"""The step on the CPU: paged attention and packed linear layers through torch, one compiled call a batch.

Opened, used and closed by one thread, the worker's. `launch` computes at once, so the depth is 0 and the ticket is
the result. A row's tokens and logits are the same to the last bit alone, in any batch, with any chunking, from cached
pages and whatever its page numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..batch import Batch, Capacity, Chunk, RowOutcome, Step, Ticket, TokenLogprobs
from ..config import EngineConfig
from ..model.config import ModelConfig
from ..model.layers import Weights, load_layers
from ..model.program import Program
from ..weights.manifest import TileChoice
from .kernels import Kernels, choose_kernels, model_tile
from .layout import Layout, LayoutBuilder, Span, chunk_spans, decode_spans
from .machine_tiles import known_tile
from .memory import MAX_ROWS, PAGE_TOKENS, MemoryPlan, free_memory, plan_memory, weight_bytes
from .prompt_scores import PromptScorer
from .sampler import Drawn, Row, sample
from .slots import Slots
from .threads import torch_threads


def open_cpu_step(
    model: ModelConfig, weights: Weights, config: EngineConfig, tiles: Sequence[TileChoice] = ()
) -> Step:
    """Plan the memory, then read the weights and make ready. `tiles` were found by an earlier trial.

    Raises `CannotServe` where a context does not fit, `ModelError` where a tensor is missing or misshapen,
    `InvalidField` where the machine has no kernels for what is asked.
    """
    kernels = choose_kernels(model, config)
    plan = plan_memory(
        model,
        config,
        kernels.dtype.itemsize,
        weight_bytes(model, kernels.linear_bytes, kernels.dtype.itemsize),
        free_memory(),
    )
    if config.tune_process:
        torch_threads.acquire(config.num_threads)
    try:
        return CpuStep(model, weights, config, kernels, plan, tiles)
    except BaseException:
        if config.tune_process:
            torch_threads.release()
        raise


class CpuStep:
    """`Step` on the CPU. `compiled=False` runs the same forward pass as Python: its naive twin."""

    def __init__(
        self,
        model: ModelConfig,
        weights: Weights,
        config: EngineConfig,
        kernels: Kernels,
        plan: MemoryPlan,
        tiles: Sequence[TileChoice] = (),
        *,
        compiled: bool = True,
    ) -> None:
        max_rows = config.max_rows or MAX_ROWS
        self.capacity = Capacity(num_pages=plan.num_pages, page_size=PAGE_TOKENS, max_rows=max_rows)
        self._model, self._floor, self._tuned = model, kernels.floor, config.tune_process
        self._program = Program(kernels.linears, compiled=compiled)
        with torch.inference_mode():
            pack, pack_rounded = kernels.linears.pack, kernels.pack_rounded
            self._layers = load_layers(model, weights, pack, kernels.dtype, plan.context, pack_rounded)
            most = config.max_batch_tokens or self.capacity.max_batch_tokens
            self._tile = known_tile(kernels, most, tiles) or model_tile(
                self._program, model, self._layers, kernels, most
            )
            rows = plan.num_pages * 2 * model.num_kv_heads * PAGE_TOKENS
            self._pools = [_zeros(rows, model.head_dim, kernels.dtype) for _ in range(model.num_layers)]
        self._slots = Slots(max_rows, -(-plan.context // PAGE_TOKENS))
        self._layouts = LayoutBuilder(self._slots, model.num_kv_heads, model.sliding_window, kernels.dtype)
        self._slides = [model.slides(layer) for layer in range(model.num_layers)]
        self._scorer = PromptScorer(self._logits)

    def launch(self, batch: Batch) -> Ticket:
        """Compute the batch; the ticket carries its outcomes."""
        for seat in batch.seats:
            self._slots.seat(seat)
            self._scorer.forget(seat.slot)
        for slot, pages in batch.grown:
            self._slots.grow(slot, pages)
        if not batch.chunks and not batch.decodes:
            return []
        with torch.inference_mode():
            return self._run(batch.chunks, batch.decodes)

    def collect(self, ticket: Ticket) -> list[RowOutcome]:
        assert isinstance(ticket, list)
        return ticket

    def prepare(self) -> bool:
        return False

    def close(self) -> None:
        """Give back weights and pages, and torch's threads. The step must not be used again."""
        self._pools.clear()
        del self._layers, self._program, self._scorer
        if self._tuned:
            self._tuned = False
            torch_threads.release()

    def _run(self, chunks: tuple[Chunk, ...], decodes: tuple[int, ...]) -> list[RowOutcome]:
        layout = self._layout(chunks, decodes)
        sampled = [*[chunk.slot for chunk in chunks if chunk.samples], *decodes]
        scored = [
            chunk for chunk in chunks if self._slots.occupant(chunk.slot).sampling.prompt_logprobs is not None
        ]
        chosen = [layout.last[slot] for slot in sampled]
        for chunk in scored:
            chosen += range(layout.last[chunk.slot] - chunk.count + 1, layout.last[chunk.slot] + 1)
        hidden, sums = self._forward(layout, chosen)
        failed = set(layout.owners[~torch.isfinite(sums).numpy()].tolist())
        for slot in failed:
            self._scrub(slot)
        scores, at = {}, len(sampled)
        for chunk in scored:
            occupant = self._slots.occupant(chunk.slot)
            scores[chunk.slot] = self._scorer.score(chunk, occupant, hidden[at : at + chunk.count])
            at += chunk.count
        drawn = self._sample(sampled, hidden[: len(sampled)])
        self._advance(chunks, decodes, drawn)
        return [
            _outcome(slot, drawn.get(slot), scores.get(slot, ()), slot in failed)
            for slot in [*[chunk.slot for chunk in chunks], *decodes]
            if slot in drawn or slot in scores or slot in failed
        ]

    def _layout(self, chunks: tuple[Chunk, ...], decodes: tuple[int, ...]) -> Layout:
        spans: list[Span] = []
        for chunk in chunks:
            spans += chunk_spans(chunk.slot, chunk.start, chunk.count, self._model.num_heads)
        padding = self._tile.padding(sum(chunk.count for chunk in chunks) + len(decodes))
        if decodes or padding:
            slots = [*decodes, *[self._slots.idle] * padding]
            positions = [self._slots.occupant(slot).computed for slot in slots]
            spans += decode_spans(np.array(slots, dtype=np.int64), np.array(positions, dtype=np.int64))
        return self._layouts.build(spans)

    def _forward(self, layout: Layout, chosen: list[int]) -> tuple[Tensor, Tensor]:
        model = self._model
        hidden, sums = self._program.forward(
            layout.tokens,
            layout.positions,
            layout.writes,
            torch.tensor(chosen, dtype=torch.int64),
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

    def _logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size]; gives float32 [rows, vocab_size]."""
        rows = len(hidden)
        hidden = pad(hidden, (0, 0, 0, self._tile.padding(rows)))
        logits: Tensor = self._program.linear(hidden, self._layers.head, self._tile.most)
        return logits[:rows].float()

    def _sample(self, slots: list[int], hidden: Tensor) -> dict[int, Drawn]:
        if not slots:
            return {}
        occupants = [self._slots.occupant(slot) for slot in slots]
        rows = [Row(occupant.sampling, occupant.tokens, occupant.prompt_len) for occupant in occupants]
        return dict(zip(slots, sample(self._logits(hidden), rows), strict=True))

    def _advance(self, chunks: tuple[Chunk, ...], decodes: tuple[int, ...], drawn: dict[int, Drawn]) -> None:
        for chunk in chunks:
            self._slots.occupant(chunk.slot).computed = chunk.start + chunk.count
        for slot in decodes:
            self._slots.occupant(slot).computed += 1
        for slot, row in drawn.items():
            self._slots.occupant(slot).tokens.append(row.token)

    def _scrub(self, slot: int) -> None:
        """Take a failed row's NaNs out of its pages: a masked position still meets a weight of zero, and 0 x NaN
        would reach the pages' next owner."""
        if slot == self._slots.idle:
            return
        pages = torch.from_numpy(self._slots.pages[slot, : self._slots.num_pages[slot]])
        for pool in self._pools:
            by_page = pool.view(self.capacity.num_pages, -1)
            by_page[pages] = by_page[pages].nan_to_num_(0.0, 0.0, 0.0)


def _zeros(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Of memory that the system hands out as it is written; `torch.zeros` would touch all of it at the start."""
    return (
        torch.from_numpy(np.zeros(rows * columns * dtype.itemsize, np.uint8)).view(dtype).view(rows, columns)
    )


def _outcome(
    slot: int, drawn: Drawn | None, scores: tuple[TokenLogprobs | None, ...], failed: bool
) -> RowOutcome:
    error = drawn.error if drawn else None
    if error or failed:
        return RowOutcome(slot, error=error or "the model's hidden state is not finite")
    if drawn is None:
        return RowOutcome(slot, prompt_logprobs=scores)
    logprobs = () if drawn.logprobs is None else (drawn.logprobs,)
    return RowOutcome(slot, (drawn.token,), logprobs, scores)
