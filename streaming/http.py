"""One HTTP exchange: read the body, submit, answer plain or as server-sent events. A client that leaves cancels."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from uuid import uuid4

import anyio
import anyio.lowlevel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response as HTTPResponse
from starlette.types import Message, Receive, Scope, Send

from ..runtime.response import Response
from .principal import Principal, principal_of
from .protocols.errors import Refusal, invalid, refusal
from .protocols.exchange import Exchange, Opened
from .service import Service


class ExchangeRoute:
    """An ASGI endpoint that speaks one `Exchange` protocol."""

    def __init__(self, service: Service, protocol: Callable[[bytes, str], Exchange]) -> None:
        self._service = service
        self._protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(Request(scope, receive), self._service.max_body_bytes)
        except ClientDisconnect:
            return
        with self._service.answering():
            async with anyio.create_task_group() as tasks:
                send = _leaving(send, tasks.cancel_scope)
                tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
                answer = await self._answer(body, send, principal_of(scope))
                if answer is not None:
                    await http_response(answer)(scope, receive, send)
                tasks.cancel_scope.cancel()

    async def _answer(
        self, body: bytes | Refusal, send: Send, principal: Principal
    ) -> bytes | Refusal | None:
        """The plain answer; None where it was streamed."""
        if isinstance(body, Refusal):
            return body
        responses: list[Response] = []
        try:
            exchange = self._protocol(body, self._service.model)
            for generate in exchange.generates:
                responses.append(await self._service.submit(generate, principal))
            first = exchange.begin(self._opened(exchange, responses))
            if exchange.is_stream:
                await self._stream(exchange, first, responses, send)
                return None
            await _feed_all(exchange, responses, _discard)
            return exchange.result()
        except Exception as exc:
            return refusal(exc)
        finally:
            for response in responses:
                response.cancel()

    async def _stream(self, exchange: Exchange, first: bytes, responses: list[Response], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        try:
            await _feed_all(exchange, responses, send)
            last = exchange.end()
        except Exception as exc:
            last = b"data: " + refusal(exc).body() + b"\n\n"
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _opened(self, exchange: Exchange, responses: list[Response]) -> Opened:
        tokenizer = self._service.backend.tokenizer
        prompts = tuple(response.request.prompt for response in responses)
        name = f"{exchange.id_prefix}{uuid4().hex}"
        return Opened(name, int(time()), self._service.model, tokenizer, prompts)


async def _feed_all(exchange: Exchange, responses: list[Response], send: Send) -> None:
    async def feed(which: int, response: Response) -> None:
        async for event in response.events():
            body = exchange.feed(which, event)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})

    async with anyio.create_task_group() as tasks:
        for which, response in enumerate(responses):
            tasks.start_soon(feed, which, response)


async def _discard(message: Message) -> None:
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


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def read_body(request: Request, max_bytes: int) -> bytes | Refusal:
    """The request's body, or the refusal of one that is too large, without reading it to its end."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            message = f"the body exceeds {max_bytes} bytes"
            return invalid(message, code="request_too_large", status=413)
    return b"".join(chunks)


def http_response(answer: bytes | Refusal) -> HTTPResponse:
    if isinstance(answer, bytes):
        return HTTPResponse(answer, media_type="application/json")
    headers = answer.headers()
    if answer.status == 413:
        headers["connection"] = "close"
    return HTTPResponse(answer.body(), answer.status, headers, media_type="application/json")


_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
