"""Continuous batching, asynchronous, in the caller's process and on the caller's loop.

The loop that starts an engine owns it: queue, responses and logs are touched there alone. The worker thread owns the
step. `generate`, `stream`, `cancel` and `stats` may be called from any loop or thread; from elsewhere they hop to the
owner. No child process, no signal handler.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..backend import Backend
from ..batch import Capacity
from ..config import EngineConfig
from ..errors import EngineClosed, EngineDied, EngineError, InvalidField, QueueFull
from ..events import Event, FinishReason
from ..inbox import Inbox
from ..intake import Intake, Prompt
from ..messages import Cancel, Generate, News, Opened, Output, Report, SchedulerStats, Stop, Stopped
from ..params import SamplingParams
from ..process import switch_interval
from ..queue import RequestQueue
from ..response import Response
from ..scheduler import Scheduler
from ..worker import Worker
from .abstract import AbstractEngine, Stats, resolve
from .answers import answer, checked, checked_config, each_prompt

WATCH_S = 1.0
"""How often the watchdog looks at the worker's heartbeat."""
CLOSE_S = 10.0
"""How long `close` waits for a step that does not return before it leaves the thread behind."""

logger = logging.getLogger("jitney")
T = TypeVar("T")


class DynamicEngine(AbstractEngine):
    """`async with DynamicEngine("smollm2-135m") as engine:` serves until the block ends.

    `model` is a name, a directory, a GGUF file, a hub id, or a `Backend`. `clock` gives monotonic seconds.
    """

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
        self._responses: dict[str, Response] = {}
        self._finished: OrderedDict[str, float] = OrderedDict()
        self._finished_bytes = 0
        self._num_open = 0
        self._sent_rows = 0
        self._scheduler_stats = SchedulerStats()
        self._counters: dict[str, int] = {}
        self._prompt_tokens = self._generated_tokens = self._late_events = 0
        self._cause: BaseException | None = None
        self._owner: asyncio.AbstractEventLoop | None = None
        self._worker: Worker | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # Life

    async def __aenter__(self) -> DynamicEngine:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Load the model and begin to serve. Raises `ModelError` or `CannotServe`."""
        if self._owner is not None:
            raise EngineClosed(f"an engine starts once; this one is {self.state}")
        self.state = "starting"
        self._owner = self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[Capacity] = self._loop.create_future()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._inbox = Inbox()
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="jitney-tokenizer")
        if self.config.tune_process:
            switch_interval.acquire()
        try:
            self.backend = await self._loop.run_in_executor(self._tokenizing, resolve, self._model)
            self._refuse_unless("starting")
            self._set_up()
            capacity = await self._opened
            self._refuse_unless("starting")
        except BaseException:
            await self.close()
            raise
        self._scheduler_stats = SchedulerStats(
            free_rows=capacity.max_rows, pages_total=capacity.num_pages - 1
        )
        self.state = "ready"
        self._watch()

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests and wait until those accepted have ended. False if `timeout_s` passed first."""
        if self._is_elsewhere():
            return await self._hop(self.drain(timeout_s))
        if self.state == "ready":
            self.state = "draining"
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End what is open as cancelled, stop the worker, give all memory back. Idempotent."""
        if self.state == "closed":
            return
        if self._is_elsewhere() and not self._loop.is_closed():
            return await self._hop(self.close())
        self.state = "closed"
        try:
            if self._worker is not None:
                self._inbox.put(Stop())
            if not self._loop.is_closed():
                self._end_all("cancelled")
                for timer in (self._timer, self._watchdog):
                    if timer is not None:
                        timer.cancel()
            if self._worker is not None:
                await self._join(self._worker)
        finally:
            self._tokenizing.shutdown(wait=True)
            if self.config.tune_process:
                switch_interval.release()

    # Requests

    async def submit(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Response:
        """Accept a request; follow it through the handle. Must be called on the engine's loop.

        `options` are those of `Options`. Raises `RequestError`, `QueueFull`, `EngineClosed` or `EngineDied`.
        """
        self._refuse_unless("ready")
        if self._is_elsewhere():
            raise EngineError("submit belongs to the engine's loop; from elsewhere use stream or generate")
        params, opts = checked(params, options)
        return self._admit(await self.intake.accept(prompt, params, opts), params)

    def _admit(self, request: Generate, params: SamplingParams) -> Response:
        self._refuse_unless("ready")
        if request.id in self._responses:
            raise InvalidField("response_id", "an id that is not in use", request.id)
        self._queue.push(request, retry_after_s=self._retry_after_s())
        tokenizer = self.backend.tokenizer
        self._responses[request.id] = response = Response(
            request, params, tokenizer, self._clock, time.time(), self._cancel
        )
        self._num_open += 1
        self._idle.clear()
        self._dispatch()
        return response

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Event]:
        """The events of one answer. Leaving the loop, or cancelling the task, cancels the request."""
        if self._is_elsewhere():
            async with aclosing(self._stream_from_afar(prompt, sampling_params, options)) as events:
                async for event in events:
                    yield event
            return
        response = await self.submit(prompt, sampling_params, **options)
        try:
            async with aclosing(response.events()) as events:
                async for event in events:
                    yield event
        finally:
            response.cancel()

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Whole answers as dicts, in the order of the prompts (one prompt gives a list of one).

        A dict holds `id`, `prompt`, `prompt_token_ids`, `choices` (each `index`, `text`, `token_ids`,
        `finish_reason`, `matched`, `logprobs`), the first choice's `text`, `tokens` and `finish_reason`,
        `prompt_logprobs`, `usage`, `times` and `error`. Raises as `submit` does, before anything runs.
        """
        jobs = each_prompt(prompts, sampling_params)
        if self._is_elsewhere():
            return await self._hop(self._generate(jobs, options))
        return await self._generate(jobs, options)

    def response(self, response_id: str) -> Response | None:
        """An open response, or one that ended not too long ago."""
        self._forget_finished()
        return self._responses.get(response_id)

    async def cancel(self, response_id: str) -> bool:
        """End a response now. True if it was open."""
        if self._is_elsewhere():
            return await self._hop(self.cancel(response_id))
        return self._cancel(response_id)

    def stats(self) -> Stats:
        """A snapshot; cheap, from any thread."""
        stats = self._scheduler_stats
        worker = self._worker
        return Stats(
            state=self.state,
            waiting=len(self._queue) + stats.waiting if self.state != "closed" and worker else 0,
            running=stats.running,
            kv_pages_total=stats.pages_total,
            kv_pages_used=stats.pages_used,
            prefix_queries=stats.prefix_queries,
            prefix_hits=stats.prefix_hits,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=stats.preemptions,
            finished=dict(self._counters),
            late_events=self._late_events,
            steps=stats.steps,
            step_age_s=self._clock() - worker.heartbeat if worker and worker.is_busy else 0.0,
        )

    # Inside: starting

    def _set_up(self) -> None:
        config = self.config
        context = min(self.backend.context_length, config.max_context or self.backend.context_length)
        self.context_length = context
        self.intake = Intake(self.backend, context, self._tokenizing, self._clock)
        self._queue = RequestQueue(max_requests=config.max_queued, max_tokens=config.max_queued_tokens)
        secret = secrets.token_bytes(32)

        def make_scheduler(capacity: Capacity) -> Scheduler:
            return Scheduler(
                capacity,
                max_batch_tokens=config.max_batch_tokens,
                prefix_cache=config.prefix_cache,
                secret=secret,
            )

        backend = self.backend
        self._worker = Worker(
            lambda: backend.open_step(config), make_scheduler, self._inbox, self._post, self._clock
        )
        self._worker.start()

    # Inside: the way back from the worker

    def _post(self, news: News) -> None:
        """Called on the worker's thread: the second crossing."""
        try:
            self._loop.call_soon_threadsafe(self._receive, news)
        except RuntimeError:
            self._inbox.put(Stop())  # the loop is closed: nobody is left to serve

    def _receive(self, news: News) -> None:
        if isinstance(news, Report):
            if self.state == "dead":
                return
            self._scheduler_stats = news.stats
            for output in news.outputs:
                self._take(output)
            self._dispatch()
        elif isinstance(news, Opened):
            if not self._opened.done():
                self._opened.set_result(news.capacity)
        else:
            self._worker_stopped(news)

    def _take(self, output: Output) -> None:
        response = self._responses.get(output.id)
        if response is None or response.done:
            self._late_events += 1
            return
        self._generated_tokens += len(output.tokens)
        self._queue.charge(response.request.user, len(output.tokens))
        if response.take(output):
            self._inbox.put(Cancel(output.id, output.choice))
        if response.done:
            self._over(response)

    def _worker_stopped(self, news: Stopped) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)
        self._scheduler_stats = msgspec.structs.replace(
            self._scheduler_stats, running=0, waiting=0, pages_used=0
        )
        if not self._opened.done():
            self._opened.set_exception(_bearable(news.error))
            self._opened.exception()
        elif self.state not in ("closed", "dead"):
            self._die(news.error or EngineDied("the worker stopped"))

    def _die(self, cause: BaseException) -> None:
        logger.error("the engine is dead: %s", cause)
        self.state, self._cause = "dead", cause
        self._inbox.put(Stop())
        self._end_all("error", f"the engine died: {cause}")

    def _watch(self) -> None:
        """Every second: a step that does not return means that the engine is stuck."""
        age = self.stats().step_age_s
        if age > self.config.step_timeout_s and self.state in ("ready", "draining"):
            self._die(EngineDied(f"a step has not returned for {age:.0f} s"))
            return
        self._watchdog = self._loop.call_later(WATCH_S, self._watch)

    # Inside: the queue

    def _dispatch(self) -> None:
        """Feed the worker: as many requests as it has seats to spare, and one more so that no seat waits for us."""
        self._expire()
        stats = self._scheduler_stats
        while stats.free_rows + 1 > self._sent_rows - stats.received_rows:
            request = self._queue.pop()
            if request is None:
                break
            self._sent_rows += request.n
            self._prompt_tokens += len(request.prompt)
            self._queue.charge(request.user, len(request.prompt))
            self._responses[request.id].dispatched()
            self._inbox.put(request)

    def _expire(self) -> None:
        for request in self._queue.expire(self._clock()):
            response = self._responses[request.id]
            response.end("deadline")
            self._over(response)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._queue.next_deadline
        if deadline is not None:
            self._timer = self._loop.call_later(max(0.0, deadline - self._clock()), self._dispatch)

    def _retry_after_s(self) -> float:
        """A guess: the queue's length times the mean time of a request so far, over the seats."""
        return min(60.0, max(1.0, len(self._queue) / max(1, self.config.max_rows)))

    # Inside: endings

    def _cancel(self, response_id: str) -> bool:
        response = self._responses.get(response_id)
        if response is None or response.done:
            return False
        if not self._queue.remove(response_id):
            self._inbox.put(Cancel(response_id))
        response.end("cancelled")
        self._over(response)
        return True

    def _end_all(self, reason: FinishReason, error: str | None = None) -> None:
        for response in [r for r in self._responses.values() if not r.done]:
            self._queue.remove(response.id)
            response.end(reason, error)
            self._over(response)

    def _over(self, response: Response) -> None:
        """Account for a response that has just been sealed, and keep it for those who come back."""
        self._queue.leave(response.request.user)
        for reason in response.finish_reasons:
            self._counters[reason] = self._counters.get(reason, 0) + 1
        self._finished[response.id] = self._clock()
        self._finished_bytes += response.num_bytes
        self._num_open -= 1
        if not self._num_open:
            self._idle.set()
        self._forget_finished()

    def _forget_finished(self) -> None:
        now = self._clock()
        while self._finished:
            response_id, since = next(iter(self._finished.items()))
            expired = now - since > self.config.keep_finished_s
            if not expired and self._finished_bytes <= self.config.keep_finished_bytes:
                return
            del self._finished[response_id]
            self._finished_bytes -= self._responses.pop(response_id).num_bytes

    async def _join(self, worker: Worker) -> None:
        if self._is_elsewhere():
            worker.join(CLOSE_S)
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._stopped
        except TimeoutError:
            logger.error("a step has not returned for %g s; its thread is left behind", CLOSE_S)
            return
        worker.join(CLOSE_S)

    # Inside: calls

    def _refuse_unless(self, state: str) -> None:
        if self.state == "dead":
            raise EngineDied("the engine died and serves nothing more") from self._cause
        if self.state != state:
            raise EngineClosed(f"the engine is {self.state}")

    def _is_elsewhere(self) -> bool:
        """Whether the caller's loop is not the engine's."""
        return self._owner is not None and asyncio.get_running_loop() is not self._owner

    async def _generate(
        self, jobs: list[tuple[Prompt, SamplingParams | None]], options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        if len(jobs) > 1 and options.get("response_id") is not None:
            raise InvalidField("response_id", "a single prompt to go with it", options["response_id"])
        accepted: list[tuple[Prompt, SamplingParams, Generate]] = []
        for prompt, given in jobs:
            self._refuse_unless("ready")
            params, opts = checked(given, options)
            accepted.append((prompt, params, await self.intake.accept(prompt, params, opts)))
        responses: list[Response] = []
        window = asyncio.Semaphore(max(1, min(self.config.max_queued, 4 * self.config.max_rows)))

        async def run(prompt: Prompt, params: SamplingParams, request: Generate) -> dict[str, Any]:
            async with window:
                responses.append(response := await self._admit_in_turn(request, params, responses))
                try:
                    return await answer(prompt, response)
                finally:
                    response.cancel()

        tasks = [asyncio.ensure_future(run(*job)) for job in accepted]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _admit_in_turn(
        self, request: Generate, params: SamplingParams, siblings: list[Response]
    ) -> Response:
        """Admit one of a batch. Where the queue is full it waits for a sibling's end, and raises if none is open."""
        while True:
            try:
                return self._admit(request, params)
            except QueueFull:
                sibling = next((response for response in siblings if not response.done), None)
                if sibling is None:
                    raise
            await sibling.log.wait_sealed()

    async def _hop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the engine's loop and wait for it here."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise EngineClosed("the loop that the engine was started on is closed") from None
        return await asyncio.wrap_future(future)

    async def _stream_from_afar(
        self, prompt: Prompt, params: SamplingParams | None, options: dict[str, Any]
    ) -> AsyncGenerator[Event]:
        events = self.stream(prompt, params, **options)

        async def advance() -> Event | None:
            return await anext(events, None)

        async def leave() -> None:
            await events.aclose()

        try:
            while (event := await self._hop(advance())) is not None:
                yield event
        finally:
            await self._hop(leave())


def _bearable(error: BaseException | None) -> Exception:
    """What a caller of `start` can be given: SystemExit and its like would end the caller's loop."""
    if error is None:
        return EngineClosed("the engine was closed while it started")
    if isinstance(error, Exception):
        return error
    died = EngineDied(f"the worker ended: {type(error).__name__}: {error}")
    died.__cause__ = error
    return died
