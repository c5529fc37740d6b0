"""Plain static batching: a batch runs until its longest answer is done, then the next begins.

What serves where continuous batching cannot, and the naive twin that it is measured and tested against. One batch at
a time, first come first served: priorities and users mean nothing here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from ..backend import Backend
from ..batch import PaddedBatch, RowOutcome, Seat
from ..config import EngineConfig
from ..errors import EngineClosed
from ..events import Event
from ..intake import Intake, Prompt
from ..messages import Generate, Output
from ..params import SamplingParams
from ..response import Response
from .abstract import AbstractEngine, Stats, resolve
from .answers import checked, each_prompt, fold


class PaddedEngine(AbstractEngine):
    """Asynchronous, like `DynamicEngine`, with the same calls. `StaticEngine` is its blocking face."""

    def __init__(
        self,
        model: str | Path | Backend,
        config: EngineConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config or EngineConfig()
        self.state = "closed"
        self._model = model
        self._clock = clock
        self._open: dict[str, Response] = {}
        self._finished: Counter[str] = Counter()

    async def start(self) -> None:
        """Load the model. Raises `ModelError`."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jitney-padded")
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self.backend = await self._loop.run_in_executor(self._thread, resolve, self._model)
        self._batch: PaddedBatch = await self._loop.run_in_executor(
            self._thread, self.backend.open_padded, self.config
        )
        context = min(self.backend.context_length, self.config.max_context or self.backend.context_length)
        self._intake = Intake(self.backend, context, self._thread, self._clock)
        self.state = "ready"

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        accepted = [await self._accept(*job, options) for job in each_prompt(prompts, sampling_params)]
        answers: list[dict[str, Any]] = []
        for batch in _batches([response for _, response in accepted], self._batch.max_rows):
            async with aclosing(self._run(batch)) as turns:
                async for _ in turns:
                    pass
        for prompt, response in accepted:
            answers.append(fold(prompt, response))
            del self._open[response.id]
        return answers

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Event]:
        _, response = await self._accept(prompt, sampling_params, options)
        shape, seen = response.shape(), 0
        try:
            async with aclosing(self._run([response])) as turns:
                async for _ in turns:
                    for event in response.log.read(seen):
                        seen = event.seq
                        for shown in shape(event):
                            yield shown
        finally:
            del self._open[response.id]

    async def cancel(self, response_id: str) -> bool:
        return self._cancel(response_id)

    async def drain(self, timeout_s: float | None = None) -> bool:
        self.state = "draining"
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                return True
        except TimeoutError:
            return False

    def stats(self) -> Stats:
        running = sum(not response.done for response in self._open.values())
        return Stats(state=self.state, running=running, finished=dict(self._finished))

    async def close(self) -> None:
        if self.state == "closed":
            return
        self.state = "closed"
        for response in self._open.values():
            response.end("cancelled")
        async with self._turn:
            await self._loop.run_in_executor(self._thread, self._batch.close)
        self._thread.shutdown()

    async def _accept(
        self, prompt: Prompt, params: SamplingParams | None, options: dict[str, Any]
    ) -> tuple[Prompt, Response]:
        if self.state != "ready":
            raise EngineClosed(f"the engine is {self.state}")
        params, opts = checked(params, options)
        request = await self._intake.accept(prompt, params, opts)
        response = Response(request, params, self.backend.tokenizer, self._clock, time.time(), self._cancel)
        self._open[response.id] = response
        return prompt, response

    def _cancel(self, response_id: str) -> bool:
        response = self._open.get(response_id)
        if response is None or response.done:
            return False
        response.end("cancelled")
        return True

    async def _run(self, batch: list[Response]) -> AsyncGenerator[None]:
        """Run a batch to its end, pausing after each step. Leaving early cancels it."""
        async with self._turn:
            rows = [(response, row) for response in batch for row in _rows(response.request)]
            steps = self._batch.run([row.seat for _, row in rows])
            try:
                while not all(response.done for response in batch):
                    outcomes = await self._loop.run_in_executor(self._thread, next, steps)
                    self._take(rows, outcomes)
                    yield
            finally:
                await self._loop.run_in_executor(self._thread, _close, steps)
                for response in batch:
                    response.end("cancelled")
                    self._finished.update(response.finish_reasons)

    def _take(self, rows: list[tuple[Response, _Row]], outcomes: list[RowOutcome]) -> None:
        for (response, row), outcome in zip(rows, outcomes, strict=True):
            deadline = response.request.deadline
            if deadline is not None and self._clock() >= deadline:
                response.end("deadline")
            elif not response.done and not row.over:
                response.take(row.advance(outcome))


class _Row(msgspec.Struct):
    """One choice in a padded batch: where it stops."""

    id: str
    seat: Seat
    length: int
    over: bool = False

    def advance(self, outcome: RowOutcome) -> Output:
        self.length += len(outcome.tokens)
        stopped = bool(outcome.tokens) and outcome.tokens[-1] in self.seat.sampling.end_token_ids
        self.over = stopped or outcome.error is not None or self.length >= self.seat.limit
        reason = "error" if outcome.error else "stop_token" if stopped else "length" if self.over else None
        return Output(
            self.id,
            self.seat.sampling.choice,
            outcome.tokens,
            outcome.logprobs,
            outcome.prompt_logprobs,
            finish_reason=reason,  # type: ignore[arg-type]  # the literals above
            matched=outcome.tokens[-1] if stopped else None,
            error=outcome.error,
        )


def _rows(request: Generate) -> list[_Row]:
    rows = []
    for choice in range(request.n):
        sampling = msgspec.structs.replace(request.sampling, choice=choice)
        if choice:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        length = len(request.prompt)
        seat = Seat(choice, request.prompt, length, length + request.max_tokens, 0, (), sampling)
        rows.append(_Row(request.id, seat, length))
    return rows


def _batches(responses: list[Response], max_rows: int) -> list[list[Response]]:
    """Consecutive requests whose choices fit together; one that is too large alone runs alone."""
    batches: list[list[Response]] = []
    room = 0
    for response in responses:
        if response.request.n > room:
            batches.append([])
            room = max_rows
        batches[-1].append(response)
        room -= response.request.n
    return batches


def _close(steps: Any) -> None:
    steps.close()
