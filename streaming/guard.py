"""ASGI middleware before every route: who may come in, as whom, and how many at a time.

What may not come in ends here, with a status that says why. What comes in finds its principal in
`scope["state"]["principal"]` and a request id in `scope["state"]["request_id"]`, which its answer's headers carry too.
A key that is revoked closes its sockets with 1008: their handlers are cancelled.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..runtime.errors import QueueFull
from .access.door import FOREIGN, Door, Visit, is_preflight
from .access.keys import RELOAD_S
from .http import http_response
from .logs import request_id
from .protocols.errors import Refusal, Refused, refusal, server_error

REVOKED = 1008
CLOSE_S = 5.0

PREFLIGHT_S = "600"


class Guard:
    def __init__(self, app: ASGIApp, door: Door, max_requests: int) -> None:
        self._app = app
        self._door = door
        self._max_requests = max_requests
        self._num_requests = 0
        self._sockets: dict[str, set[anyio.CancelScope]] = {}
        self._watching: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        name = f"req_{secrets.token_hex(8)}"
        request_id.set(name)
        try:
            self._revoke(self._door.ring.refresh())
            visit = self._door.enter(scope)
            place = self._place(scope, visit)
        except (Refused, QueueFull) as exc:
            refused = refusal(exc)
            known = Visit() if refused.code in FOREIGN else Visit(origin=Headers(scope=scope).get("origin"))
            await _refuse(refused, scope, receive, _signing(send, name, known))
            return
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state.update(principal=visit.principal, request_id=name)
        send = _signing(send, name, visit)
        with place:
            if scope["type"] == "websocket":
                await self._serve_socket(scope, receive, send, visit.principal.key)
            elif is_preflight(scope, Headers(scope=scope)):
                await _preflight(scope)(scope, receive, send)
            else:
                await self._app(scope, receive, send)

    def _place(self, scope: Scope, visit: Visit) -> AbstractContextManager[None]:
        """A place among those that are served at a time, taken now. Raises `Refused` or `QueueFull`."""
        if visit.is_health:
            return nullcontext()
        if scope["type"] == "websocket":
            return self._door.quotas.connected(visit.principal.key)
        if self._num_requests >= self._max_requests:
            message = f"{self._max_requests} requests are open, the most that may be"
            raise Refused(server_error(message, code="server_busy", status=503, retry_after_s=1.0))
        self._num_requests += 1
        return self._placed()

    @contextmanager
    def _placed(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._num_requests -= 1

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send, key: str) -> None:
        mine = self._sockets.setdefault(key, set())
        with anyio.CancelScope() as revoked:
            mine.add(revoked)
            self._watch()
            try:
                await self._app(scope, receive, send)
            finally:
                mine.discard(revoked)
                if not mine:
                    self._sockets.pop(key, None)
        if revoked.cancelled_caught:
            with anyio.move_on_after(CLOSE_S):
                await send({"type": "websocket.close", "code": REVOKED, "reason": "the key was revoked"})

    def _watch(self) -> None:
        """Look at the keys while sockets are open, whether or not anybody asks for something."""
        if self._watching is None and self._sockets and not self._door.ring.is_open:
            self._watching = asyncio.get_running_loop().call_later(RELOAD_S, self._look)

    def _look(self) -> None:
        self._watching = None
        self._revoke(self._door.ring.refresh())
        self._watch()

    def _revoke(self, names: set[str]) -> None:
        for name in names:
            for socket in list(self._sockets.get(name, ())):
                socket.cancel()


def _signing(send: Send, name: str, visit: Visit) -> Send:
    """`send`, with what every answer says of itself in its headers."""

    async def signed(message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            headers["x-request-id"] = name
            if visit.origin is not None and kind == "http.response.start":
                headers["access-control-allow-origin"] = visit.origin
                headers["access-control-expose-headers"] = "x-request-id, retry-after"
                headers.add_vary_header("origin")
            message = {**message, "headers": headers.raw}
            if kind == "websocket.accept" and not message.get("subprotocol"):
                message["subprotocol"] = visit.subprotocol
        await send(message)

    return signed


async def _refuse(refused: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """A handshake is refused with a status where the server can: browsers and SDKs see no other reason."""
    if scope["type"] == "websocket":
        await receive()
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await http_response(refused)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": refused.code})


def _preflight(scope: Scope) -> Response:
    asked = Headers(scope=scope).get("access-control-request-headers", "")[:1000]
    allowed = {
        "access-control-allow-methods": "GET, POST, PUT, DELETE",
        "access-control-allow-headers": asked,
        "access-control-max-age": PREFLIGHT_S,
    }
    return Response(status_code=204, headers=allowed)
