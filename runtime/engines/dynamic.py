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
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

from ..backend import Backend
from ..config import EngineConfig
from ..dispatcher import Dispatcher
from ..errors import EngineClosed, EngineDied, EngineError
from ..events import Event
from ..inbox import Inbox
from ..intake import Intake, Options, Prompt
from ..layout import Layout
from ..messages import Generate, News, Opened, Report, Stop, Stopped
from ..observer import Observer
from ..params import SamplingParams
from ..portions import Portions
from ..process import switch_interval
from ..response import Response
from ..scheduler import Scheduler
from ..stats import Stats
from ..worker import Worker
from .abstract import AbstractEngine, resolve
from .answers import answer_all, checked, checked_config, each_prompt
from .home import HomeLoop
from .tokenizing import Tokenizing

WATCH_S = 1.0  # between the watchdog's looks at the worker's heartbeat
CLOSE_S = 10.0  # for a step that does not return, before its thread is left behind

logger = logging.getLogger("jitney")


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
        self.observers: list[Observer] = []
        self.state = "closed"
        self._model = model
        self._clock = clock
        self._cause: BaseException | None = None
        self._home: HomeLoop | None = None
        self._worker: Worker | None = None
        self._dispatcher: Dispatcher | None = None

    async def __aenter__(self) -> DynamicEngine:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Load the model and begin to serve. Raises `ModelError` or `CannotServe`."""
        if self._home is not None:
            raise EngineClosed(f"an engine starts once; this one is {self.state}")
        self.state = "starting"
        self._home = HomeLoop()
        self._loop = self._home.loop
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._watchdog: asyncio.TimerHandle | None = None
        self._inbox = Inbox()
        self._portions = Portions(self._loop, self._receive)
        self._tokenizing = Tokenizing()
        if self.config.tune_process:
            switch_interval.acquire()
        try:
            find = partial(resolve, self._model, random_weights=self.config.load_format == "random")
            self.backend = await self._loop.run_in_executor(self._tokenizing, find)
            self._refuse_unless("starting")
            self._set_up()
            await self._opened
            self._refuse_unless("starting")
        except BaseException:
            await self.close()
            raise
        self.state = "ready"
        self._watch()

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests and wait until those accepted have ended. False if `timeout_s` passed first."""
        if self._home is not None and self._home.is_elsewhere:
            return await self._home.run(self.drain(timeout_s))
        if self.state == "ready":
            self.state = "draining"
        if self._dispatcher is None:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._dispatcher.idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End what is open as cancelled, stop the worker, give all memory back. Idempotent."""
        if self._home is None or self._ended.is_set():
            return
        if self._home.is_elsewhere and not self._home.loop.is_closed():
            return await self._home.run(self.close())
        if self.state == "closed":  # by somebody who is still at it
            if not self._home.is_elsewhere:
                await self._ended.wait()
            return
        self.state = "closed"
        try:
            self._inbox.put(Stop())
            if not self._loop.is_closed():
                if self._dispatcher is not None:
                    self._dispatcher.end_all("cancelled")
                if self._watchdog is not None:
                    self._watchdog.cancel()
            if self._worker is not None:
                await self._join(self._worker)
        finally:
            await self._tokenizing.end(CLOSE_S)
            if self.config.tune_process:
                switch_interval.release()
            self._ended.set()

    # Requests

    async def submit(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Response:
        """Accept a request; follow it through the handle. Must be called on the engine's loop.

        `options` are those of `Options`. Raises `RequestError`, `QueueFull`, `EngineClosed` or `EngineDied`.
        """
        self._refuse_unless("ready")
        if self._home is not None and self._home.is_elsewhere:
            raise EngineError("submit belongs to the engine's loop; from elsewhere use stream or generate")
        params, opts = checked(params, options)
        return self._admit(await self._accept(prompt, params, opts), params)

    async def _accept(self, prompt: Prompt, params: SamplingParams, options: Options) -> Generate:
        self._refuse_unless("ready")
        return await self.intake.accept(prompt, params, options)

    def _admit(self, request: Generate, params: SamplingParams) -> Response:
        self._refuse_unless("ready")
        assert self._dispatcher is not None
        return self._dispatcher.admit(request, params)

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Event]:
        """The events of one answer. Leaving the loop, or cancelling the task, cancels the request."""
        events = self._stream(prompt, sampling_params, options)
        if self._home is not None and self._home.is_elsewhere:
            events = self._home.iterate(events)
        async with aclosing(events):
            async for event in events:
                yield event

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Whole answers as dicts (see `answers.fold`), in the order of the prompts; one prompt gives a list of one.

        Raises as `submit` does, before anything runs. Those that may become longest begin first.
        """
        window = min(self.config.max_queued, 4 * (self.config.max_rows or 256))
        jobs = each_prompt(prompts, sampling_params)
        answers = answer_all(jobs, options, self._accept, self._admit, window)
        if self._home is not None and self._home.is_elsewhere:
            return await self._home.run(answers)
        return await answers

    def response(self, response_id: str) -> Response | None:
        """An open response, or one that ended not too long ago."""
        return self._dispatcher.find(response_id) if self._dispatcher is not None else None

    async def cancel(self, response_id: str) -> bool:
        """End a response now. True if it was open."""
        if self._home is not None and self._home.is_elsewhere:
            return await self._home.run(self.cancel(response_id))
        return self._dispatcher is not None and self._dispatcher.cancel(response_id)

    def stats(self) -> Stats:
        """A snapshot; cheap, from any thread."""
        if self._worker is None or self._dispatcher is None:
            return Stats(state=self.state)
        return self._dispatcher.snapshot(self.state, self._worker.step_age_s)

    def layout(self) -> Layout | None:
        """Who sits where, as of when this was last called; the worker is asked again now. None at first."""
        return self._dispatcher.look() if self._dispatcher is not None else None

    # Inside

    def _set_up(self) -> None:
        backend, config = self.backend, self.config
        self.context_length = min(backend.context_length, config.max_context or backend.context_length)
        self.intake = Intake(backend, self.context_length, self._tokenizing, self._clock)
        self._dispatcher = Dispatcher(config, backend.tokenizer, self._inbox, self._clock, self.observers)
        make_scheduler = partial(
            Scheduler, max_batch_tokens=config.max_batch_tokens, prefix_cache=config.prefix_cache,
            secret=secrets.token_bytes(32),
        )  # fmt: skip
        open_step = partial(backend.open_step, config)
        self._worker = Worker(open_step, make_scheduler, self._inbox, self._post, self._clock)
        self._worker.start()

    def _post(self, news: News) -> None:
        """Called on the worker's thread: the second crossing."""
        if not self._portions.post(news):
            self._inbox.put(Stop())  # the loop is closed: nobody is left to serve

    def _receive(self, news: News) -> None:
        assert self._dispatcher is not None
        if isinstance(news, Report | Layout):
            if self.state != "dead":
                self._dispatcher.receive(news)
        elif isinstance(news, Opened):
            self._dispatcher.opened(news.capacity)
            if not self._opened.done():
                self._opened.set_result(None)
        else:
            self._worker_stopped(self._dispatcher, news)

    def _worker_stopped(self, desk: Dispatcher, news: Stopped) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)
        desk.stopped()
        if not self._opened.done():
            self._opened.set_exception(news.cause)
            self._opened.exception()
        elif self.state not in ("closed", "dead"):
            self._die(news.error or news.cause)

    def _die(self, cause: BaseException) -> None:
        logger.error("the engine is dead: %s", cause)
        self.state, self._cause = "dead", cause
        self._inbox.put(Stop())
        if self._dispatcher is not None:
            self._dispatcher.end_all("error", f"the engine died: {cause}")

    def _watch(self) -> None:
        """Every second: a step that does not return means that the engine is stuck."""
        age = self.stats().step_age_s
        if age > self.config.step_timeout_s and self.state in ("ready", "draining"):
            self._die(EngineDied(f"a step has not returned for {age:.0f} s"))
            return
        self._watchdog = self._loop.call_later(WATCH_S, self._watch)

    async def _join(self, worker: Worker) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                if not self._loop.is_closed():
                    await self._stopped
        except TimeoutError:
            logger.error("a step has not returned for %g s; its thread is left behind", CLOSE_S)
        else:
            worker.join(CLOSE_S)

    def _refuse_unless(self, state: str) -> None:
        if self.state == "dead":
            raise EngineDied("the engine died and serves nothing more") from self._cause
        if self.state != state:
            raise EngineClosed(f"the engine is {self.state}")

    async def _stream(
        self, prompt: Prompt, params: SamplingParams | None, options: dict[str, Any]
    ) -> AsyncGenerator[Event]:
        response = await self.submit(prompt, params, **options)
        try:
            async with aclosing(response.events()) as events:
                async for event in events:
                    yield event
        finally:
            response.cancel()
