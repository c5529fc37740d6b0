"""What every route of one app shares: the engine, the name it is served under, and the answers under way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import anyio
import msgspec

from ..runtime.backend import Backend
from ..runtime.engines.dynamic import DynamicEngine
from ..runtime.errors import EngineClosed, InvalidField, RequestError
from ..runtime.response import Response
from .access.quotas import Quotas, granted_s
from .ending import Ending
from .ledger import Ledger
from .metrics import Metrics
from .preparing import Prepare, prepared
from .principal import ANONYMOUS, Principal
from .protocols.errors import refusal
from .protocols.generate import Generate
from .registry import Registry
from .turnstile import Turnstile

STOP_S = 1.0
"""How long clients may take to read that their answers were cancelled."""


class Service:
    def __init__(
        self,
        engine: DynamicEngine,
        served_model_name: str | None,
        *,
        quotas: Quotas,
        max_body_bytes: int,
        max_frame_bytes: int,
        system: str | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        self.engine = engine
        self.quotas = quotas
        self.metrics = Metrics()
        self.ledger = Ledger(quotas, self.metrics, lambda: self.model)
        engine.observers.append(self.ledger)
        self.max_body_bytes = max_body_bytes
        self.max_frame_bytes = max_frame_bytes
        self._system = system
        self._prepare = prepare
        self._served_model_name = served_model_name
        self.registry = Registry(self.submit, lambda: self.model)
        self.turnstile = Turnstile()
        self.ending = Ending()
        """Comes with `stop`: what is sent for as long as somebody reads ends then."""
        self._listening: set[anyio.CancelScope] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_answers = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def backend(self) -> Backend:
        """Raises `EngineClosed` before the engine has started."""
        backend: Backend | None = getattr(self.engine, "backend", None)
        if backend is None:
            raise EngineClosed(f"the engine is {self.engine.state}")
        return backend

    @property
    def model(self) -> str:
        """The one name that requests may ask for. Raises `EngineClosed` before the engine has started."""
        return self.backend.name if self._served_model_name is None else self._served_model_name

    async def submit(
        self, generate: Generate, principal: Principal = ANONYMOUS, response_id: str | None = None
    ) -> Response:
        """Raises what the engine's `submit` raises, with fields named as the client spelled them, and `QueueFull`
        where the principal's key has no room for one more answer."""
        name = response_id or f"resp_{uuid4().hex}"
        try:
            generate = await prepared(generate, principal, self._prepare)
            options = self._options(generate, principal)
            with self.ledger.opening(name, principal):
                return await self.engine.submit(generate.prompt, generate.params, response_id=name, **options)
        except InvalidField as exc:
            raise exc.renamed(generate.spelled.get(exc.field or "", exc.field or "")) from None
        except RequestError as exc:
            exc.field = generate.spelled.get(exc.field or "", exc.field)
            raise

    def start(self, beginning: Coroutine[Any, Any, None]) -> None:
        """Run what must not end with the socket that asked for it, such as `Registry.begin`, whose failures reach the
        answer's readers by themselves. Others are logged."""
        task = asyncio.ensure_future(_unraised(beginning))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def instructed(self, principal: Principal) -> Principal:
        """The principal on a chat page: with the server's system prompt, unless it came with one of its own."""
        if principal.instructions is not None or self._system is None:
            return principal
        return msgspec.structs.replace(principal, instructions=self._system)

    def _options(self, generate: Generate, principal: Principal) -> dict[str, Any]:
        """Of the engine's `submit`. The `user` of a body counts only where the key may name users and nobody else
        has."""
        key = self.quotas.limits(principal.key)
        deadline_s = granted_s(generate.priority, generate.deadline_s, key)
        if generate.user and not principal.user and (key is None or key.trusted):
            principal = Principal(principal.key, generate.user)
        salt = principal.salt(generate.cache_salt, by_user=key is not None and key.salt_by_user)
        terms = {"deadline_s": deadline_s, "user": principal.share, "cache_salt": salt}
        return generate.options() | terms

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around everything between a request and the last byte of its answer."""
        self._num_answers += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_answers -= 1
            if not self._num_answers:
                self._idle.set()

    @contextmanager
    def listening(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Around reading what a client is still to send: left after so many seconds, or when the server stops."""
        with anyio.move_on_after(0 if self.ending.has_come else seconds) as scope:
            self._listening.add(scope)
            try:
                yield scope
            finally:
                self._listening.discard(scope)

    async def stop(self) -> None:
        """Cancel what is still open, and let its readers hear so."""
        self.registry.shut()
        self.registry.cancel_all()
        await self.ending.come()
        for scope in list(self._listening):
            scope.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await self._idle.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse what is new, and wait until the last byte of what is open is sent, turns that wait in a lane
        included. False if the time passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.turnstile.passed()  # behind all who came before
                await self.registry.close()
                await self.engine.drain()
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


async def _unraised(beginning: Coroutine[Any, Any, None]) -> None:
    try:
        await beginning
    except Exception as exc:
        refusal(exc)
