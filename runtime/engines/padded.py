"""Plain static batching: a batch runs until its longest answer is done, then the next begins.

What serves where continuous batching cannot, and the naive twin that it is measured and tested against. One batch at
a time, first come first served: priorities and users mean nothing here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..backend import Backend
from ..batch import PaddedBatch, RowOutcome
from ..config import EngineConfig
from ..errors import EngineClosed, InvalidField
from ..events import Event
from ..intake import Intake, Prompt
from ..messages import Output
from ..params import SamplingParams
from ..response import Response
from ..sequence import Sequence as Row
from ..sequence import choices
from ..stats import Stats
from .abstract import AbstractEngine, resolve
from .answers import checked, checked_config, each_prompt, fold

logger = logging.getLogger("jitney")


class PaddedEngine(AbstractEngine):
    """Asynchronous, like `DynamicEngine`, with the same calls. `StaticEngine` is its blocking face."""

    def __init__(
        self,
        model: str | Path | Backend,
        config: EngineConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = checked_config(config)
        self.state = "closed"
        self._model = model
        self._clock = clock
        self._open: dict[str, Response] = {}
        self._finished: Counter[str] = Counter()

    async def start(self) -> None:
        """Load the model. Raises `ModelError` or `CannotServe`."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jitney-padded")
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        try:
            find = partial(resolve, self._model, random_weights=self.config.load_format == "random")
            self.backend = await self._loop.run_in_executor(self._thread, find)
            self._batch: PaddedBatch = await self._loop.run_in_executor(
                self._thread, self.backend.open_padded, self.config
            )
        except BaseException:
            self._thread.shutdown()
            raise
        context = min(self.backend.context_length, self.config.max_context or self.backend.context_length)
        self.intake = Intake(self.backend, context, self._thread, self._clock)
        self.state = "ready"

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        jobs = each_prompt(prompts, sampling_params)
        accepted = [await self._accept(*job, options) for job in jobs]
        with self._opened(accepted):
            for batch in _batches(accepted, self._batch.max_rows):
                await self._run(batch)
        return [fold(prompt, response) for (prompt, _), response in zip(jobs, accepted, strict=True)]

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Event]:
        """The events of one answer. A slow reader holds nobody up; one that leaves cancels."""
        response = await self._accept(prompt, sampling_params, options)
        with self._opened([response]):
            running = asyncio.create_task(self._run([response]))
            try:
                async with aclosing(response.events()) as events:
                    async for event in events:
                        yield event
            finally:
                response.cancel()
                await running

    async def cancel(self, response_id: str) -> bool:
        return self._cancel(response_id)

    async def drain(self, timeout_s: float | None = None) -> bool:
        if self.state == "ready":
            self.state = "draining"
        try:
            async with asyncio.timeout(timeout_s):
                for response in list(self._open.values()):
                    await response.log.wait_sealed()
        except TimeoutError:
            return False
        return True

    def stats(self) -> Stats:
        running = sum(not response.done for response in list(self._open.values()))
        return Stats(state=self.state, running=running, finished=dict(self._finished))

    async def close(self) -> None:
        if self.state == "closed":
            return
        self.state = "closed"
        for response in self._open.values():
            response.end("cancelled")
        async with self._turn:
            self._thread.shutdown()
            self._batch.close()

    async def _accept(
        self, prompt: Prompt, params: SamplingParams | None, options: dict[str, Any]
    ) -> Response:
        if self.state != "ready":
            raise EngineClosed(f"the engine is {self.state}")
        params, opts = checked(params, options)
        if opts.warm_up:
            raise InvalidField("warm_up", "false: padded batches keep no pages", opts.warm_up)
        request = await self.intake.accept(prompt, params, opts)
        return Response(request, params, self.backend.tokenizer, self._clock, self._cancel)

    @contextmanager
    def _opened(self, responses: list[Response]) -> Iterator[None]:
        """Within, the responses can be cancelled by id; on the way out they are over."""
        if self.state != "ready":
            raise EngineClosed(f"the engine is {self.state}")
        named = {response.id: response for response in responses}
        taken = named.keys() & self._open.keys()
        if taken or len(named) < len(responses):
            raise InvalidField("response_id", "an id that is not in use", responses[0].id)
        self._open.update(named)
        try:
            yield
        finally:
            for response in responses:
                response.end("cancelled")
                self._finished.update(response.finish_reasons)
                del self._open[response.id]

    def _cancel(self, response_id: str) -> bool:
        response = self._open.get(response_id)
        if response is None or response.done:
            return False
        response.end("cancelled")
        return True

    async def _run(self, batch: list[Response]) -> None:
        """Run a batch when its turn comes, or end it when its deadline comes first."""
        try:
            async with asyncio.timeout(self._patience(batch)):
                await self._turn.acquire()
        except TimeoutError:
            for response in batch:
                response.end("deadline")
            return
        try:
            if not all(response.done for response in batch):
                await self._run_now(batch)
        finally:
            self._turn.release()

    def _patience(self, batch: list[Response]) -> float | None:
        """Seconds until every response in the batch is past its deadline; None where one has none."""
        deadlines = [response.request.deadline for response in batch if not response.done]
        given = [deadline for deadline in deadlines if deadline is not None]
        return max(given) - self._clock() if given and len(given) == len(deadlines) else None

    async def _run_now(self, batch: list[Response]) -> None:
        """Run a batch until every response in it is over. A step that raises ends them with an error."""
        rows = [(response, row) for response in batch for row in choices(response.request)]
        for slot, (_, row) in enumerate(rows):
            row.slot = slot
        steps = self._batch.run([row.seat() for _, row in rows])
        try:
            while not all(response.done for response in batch):
                outcomes = await self._loop.run_in_executor(self._thread, next, steps, None)
                self._take(rows, outcomes or [])
        except Exception as error:
            logger.exception("a padded batch failed; its rows end with an error")
            for response in batch:
                response.end("error", f"the step failed: {type(error).__name__}: {error}")
        finally:
            await self._loop.run_in_executor(self._thread, _close, steps)

    def _take(self, rows: list[tuple[Response, Row]], outcomes: list[RowOutcome]) -> None:
        for (response, row), outcome in zip(rows, outcomes, strict=True):
            deadline = response.request.deadline
            if deadline is not None and self._clock() >= deadline:
                response.end("deadline")
            elif not response.done and not row.ended:
                response.take(_advanced(row, outcome), self._clock())


def _advanced(row: Row, outcome: RowOutcome) -> Output:
    """What a step gave one choice."""
    tokens, reason = row.advance(0, True, outcome.tokens)
    if outcome.error is not None:
        reason = "error"
    row.ended = reason is not None
    return Output(
        *row.name,
        tokens,
        outcome.logprobs,
        outcome.prompt_logprobs,
        finish_reason=reason,
        matched=tokens[-1] if reason == "stop_token" else None,
        error=outcome.error,
    )


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
