"""The step on the CPU: a forward pass through own kernels or torch, and sampling, one batch at a time.

Opened, used and closed by one thread, the worker's. `launch` computes at once, so the depth is 0 and the ticket is
the result. A row's tokens and logits are the same to the last bit alone, in any batch, with any chunking, from cached
pages and whatever its page numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import Batch, Capacity, Chunk, RowOutcome, Step, Ticket, TokenLogprobs
from ..config import EngineConfig
from ..model.config import ModelConfig
from ..model.layers import Weights
from ..native.forward import NativeForward, why_not
from ..weights.manifest import TileChoice
from .forward import Forward, Run
from .kernels import choose_kernels
from .memory import MAX_ROWS, PAGE_TOKENS, MemoryPlan, free_memory, plan_memory, weight_bytes
from .prompt_scores import PromptScorer
from .sampler import Drawn, Row, sample
from .slots import Slots
from .threads import torch_threads
from .torch_forward import TorchForward

logger = logging.getLogger("jitney")


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
    slots = Slots(config.max_rows or MAX_ROWS, -(-plan.context // PAGE_TOKENS))
    if config.tune_process:
        torch_threads.acquire(config.num_threads)
    try:
        reason = why_not(model, kernels.dtype)
        with torch.inference_mode():
            forward: Forward
            if reason is None:
                threads, int8 = torch.get_num_threads(), kernels.pack_rounded is not None
                logger.info(
                    "own kernels compute, on %d threads, in %s", threads, "int8" if int8 else "bfloat16"
                )
                forward = NativeForward(model, weights, plan, slots, threads, int8=int8)
            else:
                logger.info("torch computes: %s", reason)
                forward = TorchForward(model, weights, config, kernels, plan, slots, tiles)
        return CpuStep(forward, slots, plan, tuned=config.tune_process)
    except BaseException:
        if config.tune_process:
            torch_threads.release()
        raise


class CpuStep:
    """`Step` on the CPU."""

    def __init__(self, forward: Forward, slots: Slots, plan: MemoryPlan, *, tuned: bool) -> None:
        """`tuned`: torch's threads are held, and given back at the close."""
        self.capacity = Capacity(num_pages=plan.num_pages, page_size=PAGE_TOKENS, max_rows=slots.max_rows)
        self._forward, self._slots, self._tuned = forward, slots, tuned
        self._scorer = PromptScorer(forward.logits)

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
        self._forward.close()
        del self._scorer
        if self._tuned:
            self._tuned = False
            torch_threads.release()

    def _run(self, chunks: tuple[Chunk, ...], decodes: tuple[int, ...]) -> list[RowOutcome]:
        runs = [Run(chunk.slot, chunk.start, chunk.count) for chunk in chunks]
        runs += [Run(slot, self._slots.occupant(slot).computed, 1) for slot in decodes]
        ends, end = {}, 0
        for run in runs:
            ends[run.slot] = end = end + run.num_tokens
        sampled = [*[chunk.slot for chunk in chunks if chunk.samples], *decodes]
        scored = [
            chunk for chunk in chunks if self._slots.occupant(chunk.slot).sampling.prompt_logprobs is not None
        ]
        chosen = [ends[slot] - 1 for slot in sampled]
        for chunk in scored:
            chosen += range(ends[chunk.slot] - chunk.count, ends[chunk.slot])
        hidden, logits, finite = self._forward.compute(runs, chosen, len(sampled))
        failed = self._failed(runs, finite)
        scores, at = {}, len(sampled)
        for chunk in scored:
            occupant = self._slots.occupant(chunk.slot)
            scores[chunk.slot] = self._scorer.score(chunk, occupant, hidden[at : at + chunk.count])
            at += chunk.count
        drawn = self._sample(sampled, logits)
        self._advance(chunks, decodes, drawn)
        return [
            _outcome(slot, drawn.get(slot), scores.get(slot, ()), slot in failed)
            for slot, _, _ in runs
            if slot in drawn or slot in scores or slot in failed
        ]

    def _failed(self, runs: list[Run], finite: Tensor) -> set[int]:
        """Slots whose state is not finite, their pages scrubbed."""
        if bool(finite.all()):
            return set()
        failed = {
            run.slot
            for run, sound in zip(runs, finite.split([run.num_tokens for run in runs]), strict=True)
            if not sound.all()
        }
        for slot in failed:
            self._forward.scrub(self._slots.pages[slot, : self._slots.num_pages[slot]])
        return failed

    def _sample(self, slots: list[int], logits: Tensor) -> dict[int, Drawn]:
        if not slots:
            return {}
        occupants = [self._slots.occupant(slot) for slot in slots]
        rows = [Row(occupant.sampling, occupant.tokens, occupant.prompt_len) for occupant in occupants]
        return dict(zip(slots, sample(logits, rows), strict=True))

    def _advance(self, chunks: tuple[Chunk, ...], decodes: tuple[int, ...], drawn: dict[int, Drawn]) -> None:
        for chunk in chunks:
            self._slots.occupant(chunk.slot).computed = chunk.start + chunk.count
        for slot in decodes:
            self._slots.occupant(slot).computed += 1
        for slot, row in drawn.items():
            self._slots.occupant(slot).tokens.append(row.token)


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
