"""One HTTP exchange: read the body, submit, answer plain or as server-sent events.

A client that leaves cancels, unless it asked for its answer to go on without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from time import time
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response as HTTPResponse
from starlette.types import Message, Receive, Scope, Send

from ..runtime.errors import RequestError
from ..runtime.events import Event
from ..runtime.log import Log, merged
from .ending import Ending
from .entry import Entry
from .principal import principal_of
from .protocols.delivery import CANCEL, Delivery
from .protocols.errors import CANCELLED, STOPPING, Refusal, Refused, invalid, refusal
from .protocols.exchange import Exchange, Opened
from .protocols.fields import parse
from .reader import news_of
from .service import Service
from .sse import EventStream

Answer = bytes | Refusal | None
"""A plain answer; None where it was streamed."""


BODY_S = 60.0
LINGER_BYTES = 64 * 2**20
"""Of a body that is too large are read and thrown away: a client that sends to the end before it listens then hears the
refusal and not a reset."""


class Endpoint:
    """An ASGI endpoint that reads a request and answers it. Where the client leaves, the answering is cancelled. What
    `answer` raises is told."""

    def __init__(self, service: Service, answer: Callable[[Request, bytes, Send], Awaitable[Answer]]) -> None:
        self._service = service
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await read_body(request, self._service.max_body_bytes)
        except ClientDisconnect:
            return
        with self._service.answering():
            await self._service.turnstile.passed()
            async with anyio.create_task_group() as tasks:
                send = _leaving(send, tasks.cancel_scope)
                end = Ending()
                tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope, end)
                try:
                    given = body if isinstance(body, Refusal) else await self._answer(request, body, send)
                except Exception as exc:
                    given = refusal(exc)
                if isinstance(given, Refusal) and given.code == CANCELLED and self._service.ending.has_come:
                    given = STOPPING  # it was not the client that cancelled
                if given is not None:
                    await http_response(given)(scope, receive, send)
                await end.come()  # uvicorn says now that the client has left
                tasks.cancel_scope.cancel()


class ExchangeRoute(Endpoint):
    """Speaks one `Exchange` protocol."""

    def __init__(self, service: Service, protocol: Callable[[bytes, str], Exchange]) -> None:
        super().__init__(service, self._exchange)
        self._protocol = protocol

    async def _exchange(self, request: Request, body: bytes, send: Send) -> Answer:
        exchange = self._protocol(body, self._service.model)
        entry = Entry(
            f"{exchange.id_prefix}{uuid4().hex}",
            principal_of(request.scope),
            exchange.delivery.policy(CANCEL),
        )
        registry = self._service.registry
        with registry.reading(registry.open(entry)):
            self._service.start(registry.begin(entry, exchange.generates))
            await entry.begun()
            first = exchange.begin(self._opened(entry))
            if exchange.is_stream:
                await self._stream(exchange, entry, first, EventStream(send))
                return None
            await _feed_all(exchange, entry, _discard)
            return exchange.result()

    async def _stream(self, exchange: Exchange, entry: Entry, first: bytes, events: EventStream) -> None:
        await events.open()
        await events.put(first)
        try:
            async with asyncio.TaskGroup() as tasks:
                alive = tasks.create_task(events.keep_alive())
                await _feed_all(exchange, entry, events.put)
                await events.rest()
                alive.cancel()
            last = exchange.end()
        except Exception as exc:
            last = b"data: " + refusal(exc).body() + b"\n\n"
        await events.close(last)

    def _opened(self, entry: Entry) -> Opened:
        tokenizer = self._service.backend.tokenizer
        prompts = tuple(response.request.prompt for response in entry.responses)
        return Opened(entry.id, int(time()), self._service.model, tokenizer, prompts)


async def _feed_all(exchange: Exchange, entry: Entry, put: Callable[[bytes], Awaitable[None]]) -> None:
    async def feed(which: int, log: Log) -> None:
        async for event in _paced(log, exchange.delivery):
            body = exchange.feed(which, event)
            if body:
                await put(body)

    first, *others = enumerate(entry.responses)
    async with asyncio.TaskGroup() as tasks:
        for which, response in others:
            tasks.create_task(feed(which, response.log))
        await feed(first[0], first[1].log)


async def _paced(log: Log, delivery: Delivery) -> AsyncGenerator[Event]:
    cursor = 0
    while not (log.is_sealed and log.last_seq == cursor):
        news = await news_of(log, cursor, delivery)
        cursor = news[-1].seq
        for event in merged(news):
            yield event


async def _discard(events: bytes) -> None:
    """Where nothing is streamed, nothing is sent until the end."""


def _leaving(send: Send, scope: anyio.CancelScope) -> Send:
    """Some servers raise when the client has left: that cancels, as noticing it while reading does."""

    async def send_or_leave(message: Message) -> None:
        try:
            await send(message)
        except OSError:
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    return send_or_leave


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope, end: Ending) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not end.has_come:
        scope.cancel()


async def read_body(request: Request, max_bytes: int) -> bytes | Refusal:
    """The request's body, or the refusal of one that is too large or too slow, or not there when the server stops."""
    service: Service = request.app.state.service
    chunks: list[bytes] = []
    size = 0
    with service.listening(BODY_S) as limit:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= max_bytes:
                chunks.append(chunk)
            elif size > max_bytes + LINGER_BYTES:
                break
    if size > max_bytes:
        return invalid(f"the body exceeds {max_bytes} bytes", code="request_too_large", status=413)
    if not limit.cancelled_caught:
        return b"".join(chunks)
    if service.ending.has_come:
        return STOPPING
    return invalid(f"the body did not come within {BODY_S:g} s", code="request_timeout", status=408)


def http_response(answer: bytes | Refusal) -> HTTPResponse:
    if isinstance(answer, bytes):
        return HTTPResponse(answer, media_type="application/json")
    headers = answer.headers()
    if answer.status in (408, 413):  # the rest of the body is not read
        headers["connection"] = "close"
    return HTTPResponse(answer.body(), answer.status, headers, media_type="application/json")


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(value), status, headers, media_type="application/json")


async def json_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """The request's JSON object. Raises `RequestError`; `Refused` with 413 where it is too large."""
    try:
        body = await read_body(request, max_bytes)
    except ClientDisconnect:
        raise RequestError("the client has left") from None
    if isinstance(body, Refusal):
        raise Refused(body)
    return parse(body)
