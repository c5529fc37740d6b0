"""The step by itself: rows of one context length that decode together, no engine around it.

Every size is prefilled for real, warmed up, then timed between the collections of its steps with the step's own
run-ahead. Prefill and decode are measured apart.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from ....runtime.batch import Batch, Chunk, RowSampling, Seat, Step
from ....runtime.config import EngineConfig
from ....runtime.engines.abstract import resolve
from ....runtime.process import short_spins
from .device import Kind, bandwidth, busy_s, kind_of
from .process import answer
from .report import device_name, percentile
from .roofline import StepBytes, step_bytes

WARM_UP = 8
PROFILED = 16


class StepJob(msgspec.Struct, frozen=True, kw_only=True):
    """`settings` are those of `EngineConfig`; `bandwidth` in bytes a second, None to measure it."""

    model: str
    batches: list[int]
    contexts: list[int]
    steps: int
    settings: dict[str, Any]
    bandwidth: float | None = None


class StepFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Times in ms, `host_us` a step. `idle` is the share of a step in which the card computes nothing; None on the
    CPU. `failure` says why a size has no figures."""

    batch: int
    context: int
    ms: float = 0.0
    ms_p90: float = 0.0
    floor_ms: float = 0.0
    host_us: float = 0.0
    idle: float | None = None
    prefill_tokens_per_s: float = 0.0
    failure: str | None = None


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    bandwidth: float
    weight_bytes: int
    load_s: float
    figures: list[StepFigures]


def measure(job: StepJob) -> StepResult:
    """Raises `JitneyError` where the model cannot be loaded."""
    context = max(job.contexts) + job.steps + 2 * WARM_UP + PROFILED
    config = EngineConfig(**{"max_rows": max(job.batches), "max_context": context} | job.settings)
    with short_spins():
        kind = kind_of(config.device)
    speed = job.bandwidth
    if speed is None and kind == "cuda":
        speed = bandwidth(kind)  # as long as there is memory for it
    begun = time.perf_counter()
    backend: Any = resolve(job.model, random_weights=config.load_format == "random")
    step = backend.open_step(config)
    while step.prepare():
        pass
    load_s = time.perf_counter() - begun
    sizes = step_bytes(backend.config, config)
    speed = speed or bandwidth(kind)  # a CPU's, on the threads that the step holds
    try:
        figures = [
            Measured(step, sizes, kind, speed, backend.vocab_size, job.steps)(batch, context)
            for context in job.contexts
            for batch in job.batches
        ]
    finally:
        step.close()
    return StepResult(
        device=device_name(kind), bandwidth=speed, weight_bytes=sizes.weights, load_s=load_s, figures=figures
    )


class Measured:
    """Rows are seated anew for each size; their contexts grow around the one that is asked for."""

    def __init__(
        self, step: Step, sizes: StepBytes, kind: Kind, speed: float, vocab_size: int, steps: int
    ) -> None:
        self._step, self._sizes, self._kind, self._speed = step, sizes, kind, speed
        self._vocab_size, self._steps = vocab_size, steps

    def __call__(self, batch: int, context: int) -> StepFigures:
        start = max(1, context - self._steps // 2 - WARM_UP)
        pages = -(-(start + self._steps + 2 * WARM_UP + PROFILED) // self._step.capacity.page_size)
        fits = (self._step.capacity.num_pages - 1) // pages
        if batch > fits:
            return StepFigures(batch=batch, context=context, failure=f"{fits} such rows fit")
        prefill_s = self._prefill(batch, start, pages)
        decode = Batch(0, (), (), (), tuple(range(batch)))
        self._run(decode, WARM_UP)
        taken, host = self._run(decode, self._steps)
        busy = busy_s(lambda: self._run(decode, PROFILED)) if self._kind == "cuda" else None
        ms = percentile(taken, 0.5) * 1e3
        return StepFigures(
            batch=batch,
            context=context,
            ms=ms,
            ms_p90=percentile(taken, 0.9) * 1e3,
            floor_ms=self._sizes.of(batch, context) / self._speed * 1e3,
            host_us=percentile(host, 0.5) * 1e6,
            idle=None if busy is None else max(0.0, 1 - busy / PROFILED * 1e3 / ms),
            prefill_tokens_per_s=batch * start / prefill_s,
        )

    def _prefill(self, batch: int, count: int, pages: int) -> float:
        """Seconds."""
        draw = random.Random(batch)
        prompts = [tuple(draw.randrange(self._vocab_size) for _ in range(count)) for _ in range(batch)]
        begun = time.perf_counter()
        for slot, prompt in enumerate(prompts):
            seat = Seat(
                slot, prompt, count, pages * self._step.capacity.page_size, 0,
                tuple(range(1 + slot * pages, 1 + (slot + 1) * pages)), RowSampling(seed=slot, temperature=0.6),
            )  # fmt: skip
            for chunk in self._chunks(slot, count):
                seats = (seat,) if chunk.start == 0 else ()
                self._step.collect(self._step.launch(Batch(0, seats, (), (chunk,), ())))
        return time.perf_counter() - begun

    def _chunks(self, slot: int, count: int) -> Iterator[Chunk]:
        most = self._step.capacity.max_batch_tokens
        for at in range(0, count, most):
            yield Chunk(slot, at, min(most, count - at), at + most >= count)

    def _run(self, batch: Batch, steps: int) -> tuple[list[float], list[float]]:
        """Seconds between two collections, and in a launch."""
        tickets: deque[Any] = deque()
        ends: list[float] = []
        host: list[float] = []
        for _ in range(steps):
            begun = time.perf_counter()
            tickets.append(self._step.launch(batch))
            host.append(time.perf_counter() - begun)
            if len(tickets) > self._step.capacity.depth:
                self._step.collect(tickets.popleft())
                ends.append(time.perf_counter())
        while tickets:
            self._step.collect(tickets.popleft())
            ends.append(time.perf_counter())
        return [later - end for end, later in zip(ends, ends[1:], strict=False)], host


if __name__ == "__main__":
    answer(StepJob, measure, lambda job: job.model)
