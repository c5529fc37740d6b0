"""Clients of an ASGI app without a wire: a WebSocket, and one HTTP exchange whose body comes piece by piece.

They can leave at any moment, as a closed laptop does: the app sees a disconnect, and what it sends then is lost.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

from jitney.streaming.line import Line, Outbox
from jitney.streaming.wire import EXTENSION

UNREAD = 8
"""Frames that lie between the app and a client that does not read."""


class _Pipe:
    """What the app has sent and the client has not read. The app waits while it is full."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._changed = asyncio.Event()
        self.is_closed = False

    @property
    def is_full(self) -> bool:
        return len(self._items) >= UNREAD

    async def put(self, item: Any) -> None:
        while self.is_full and not self.is_closed:
            await self._wait()
        if self.is_closed:
            raise OSError("the client has left")
        self.add(item)

    def add(self, item: Any) -> None:
        self._items.append(item)
        self._changed.set()

    async def get(self) -> Any:
        while not self._items:
            await self._wait()
        item = self._items.popleft()
        self._changed.set()
        return item

    def close(self) -> None:
        self.is_closed = True
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class _Wire(asyncio.Transport):
    """Where the short way of frames ends: a line that rests while the pipe is full."""

    def __init__(self, pipe: _Pipe) -> None:
        super().__init__()
        self._pipe = pipe
        self.line = Line(Outbox())
        self.line.open(self)

    def is_closing(self) -> bool:
        return self._pipe.is_closed

    def write(self, data: Any) -> None:
        while data:
            start = {126: 4, 127: 10}.get(data[1], 2)
            end = start + (int.from_bytes(data[2:start]) if start > 2 else data[1])
            self._pipe.add({"type": "websocket.send", "text": data[start:end].decode()})
            data = data[end:]
        if self._pipe.is_full:
            self.line.pause()

    def was_read(self) -> None:
        if not self._pipe.is_full:
            self.line.resume()


def _headers(extra: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(k.encode(), v.encode()) for k, v in {"host": "localhost", **extra}.items()]


class _Client:
    def __init__(self, app: Any, scope: dict[str, Any], headers: dict[str, str]) -> None:
        path, _, query = scope["path"].partition("?")
        common = {"query_string": query.encode(), "headers": _headers(headers), "root_path": ""}
        address = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
        self._scope = {**common, **address, **scope, "path": path, "raw_path": path.encode()}
        self._app = app
        self._to_app: asyncio.Queue[Any] = asyncio.Queue()
        self._pipe = _Pipe()

    def _start(self) -> None:
        self.task = asyncio.ensure_future(self._app(self._scope, self._to_app.get, self._send))

    async def _send(self, message: Any) -> None:
        await self._pipe.put(message)

    async def _leave(self, kind: str) -> None:
        self._pipe.close()
        self._to_app.put_nowait({"type": kind, "code": 1006})


class Socket(_Client):
    """`async with Socket(app) as socket:` leaves at the end of the block; the app may go on, as `task`. Frames come the
    short way, as from the server that jitney runs, or as plain ASGI messages."""

    def __init__(
        self, app: Any, path: str = "/v1/responses", *, is_short: bool = True, **headers: str
    ) -> None:
        scope = {"type": "websocket", "path": path, "scheme": "ws", "subprotocols": []}
        super().__init__(app, {**scope, "extensions": {"websocket.http.response": {}}}, headers)
        self._wire = _Wire(self._pipe)
        if is_short:
            self._scope["extensions"][EXTENSION] = {"sender": self._wire.line}

    async def __aenter__(self) -> Socket:
        self._to_app.put_nowait({"type": "websocket.connect"})
        self._start()
        opening = await self._pipe.get()
        assert opening["type"] == "websocket.accept", opening
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._leave("websocket.disconnect")
        self._wire.line.close()

    async def _send(self, message: Any) -> None:
        self._wire.line.flush()
        await super()._send(message)
        if message["type"] == "websocket.close":
            self._wire.line.close()

    def send(self, **frame: Any) -> None:
        self.send_text(json.dumps(frame))

    def send_text(self, text: str) -> None:
        self._to_app.put_nowait({"type": "websocket.receive", "text": text})

    async def recv(self) -> Any:
        """The next frame; a close shows as its message."""
        message = await self._pipe.get()
        self._wire.was_read()
        return json.loads(message["text"]) if "text" in message else message


class Exchange(_Client):
    """`async with Exchange(app, "POST", path, body) as exchange:` has the status; leaving the block hangs up."""

    def __init__(self, app: Any, method: str, path: str, body: Any = None, **headers: str) -> None:
        super().__init__(app, {"type": "http", "path": path, "method": method, "scheme": "http"}, headers)
        self._body = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self._rest = b""
        self._is_whole = False

    def start(self) -> None:
        self._to_app.put_nowait({"type": "http.request", "body": self._body, "more_body": False})
        self._start()

    async def __aenter__(self) -> Exchange:
        self.start()
        opening = await self._pipe.get()
        self.status = opening["status"]
        self.headers = {k.decode(): v.decode() for k, v in opening["headers"]}
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.hang_up()

    async def hang_up(self) -> None:
        await self._leave("http.disconnect")
        await asyncio.wait({self.task})

    async def json(self) -> Any:
        """The whole body."""
        body = b""
        while not self._is_whole:
            body += await self._piece()
        return json.loads(body)

    async def event(self) -> Any:
        """The data of the next server-sent event; None at the end of the stream."""
        while True:
            event, mark, rest = self._rest.partition(b"\n\n")
            if not mark and self._is_whole:
                return None
            if not mark:
                self._rest += await self._piece()
                continue
            self._rest = rest
            data = b"".join(line[6:] for line in event.split(b"\n") if line.startswith(b"data: "))
            if data:
                return json.loads(data) if data != b"[DONE]" else "[DONE]"

    async def _piece(self) -> bytes:
        message = await self._pipe.get()
        self._is_whole = not message.get("more_body", False)
        return bytes(message.get("body", b""))


async def ask(app: Any, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """The status and the JSON of one exchange."""
    async with Exchange(app, method, path, body, **headers) as exchange:
        return exchange.status, await exchange.json()
