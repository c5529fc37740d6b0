"""The short way of a text frame: uvicorn's WebSocket protocol with frames written straight to the transport.

Handshake, reading, pings and close stay uvicorn's. A handler asks for a `frame_sender` and gets the short way
where the server runs this protocol, else plain ASGI; the bytes on the wire are the same.

A socket holds at most `MAX_HELD_BYTES` here, as much in the transport's buffer, in the system's, and in what it handed
over last, and two frames: whoever sends waits for room.
What a client sends cannot make it hold more than a message, nor the loop for long: fragments are joined as they come,
little is read at a time, and a client that floods it with pings without reading the replies is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from asyncio.transports import BaseTransport
from http import HTTPStatus
from typing import Any, cast

from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidMessage, SecurityError
from websockets.frames import Frame

from .line import MAX_HELD_BYTES, Line, Outbox, SettledTransport
from .protocols.errors import invalid

EXTENSION = "jitney.frames"
MAX_PONG_BYTES = 256 * 2**10
READ_BYTES = 8 * 2**10
"""Read at a time: at worst some 1,300 frames, which take 5 ms to parse."""
H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)
UNFINISHED = "ASGI callable returned without completing handshake"
"""What uvicorn says of a handshake that was refused, and so is over."""


class PlainSender:
    """Over plain ASGI, where sending is waiting; else as `Line`."""

    has_room = False

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._num_sending = 0

    @property
    def lags(self) -> bool:
        return self._num_sending > 0

    async def send_frame(self, payload: bytes) -> None:
        self._num_sending += 1
        try:
            await self._websocket.send({"type": "websocket.send", "text": payload.decode()})
        except RuntimeError as exc:  # it is closing
            raise WebSocketDisconnect(1006) from exc
        finally:
            self._num_sending -= 1

    def put_frame(self, payload: bytes) -> None:
        raise AssertionError("there was no room")


FrameSender = Line | PlainSender
"""Sends text frames of UTF-8 bytes, after accept."""


def frame_sender(websocket: WebSocket) -> FrameSender:
    fast: dict[str, Line] | None = websocket.scope.get("extensions", {}).get(EXTENSION)
    return PlainSender(websocket) if fast is None else fast["sender"]


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, where a client may have sent more than the request that is being answered: that answer hears that the
    client has left, and no upgrade takes its connection away. After an upgrade the parser, which knows this too, is let
    go of: else the garbage collector would have to find both, and all that the connection held.

    An offer to go on in HTTP/2, which some clients make in the clear, is passed over (RFC 9110, section 7.8): the
    parser would take it for the end of the request, and its body for another."""

    _answering: RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        if b"h2c" in data and (self.cycle is None or not self.cycle.more_body):
            head, blank, rest = data.partition(b"\r\n\r\n")
            data = H2C.sub(b"", head + blank) + rest
        super().data_received(data)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def handle_websocket_upgrade(self) -> None:
        if self._answering is not None and not self._answering.response_complete:
            self.transport.close()
            return
        self._answering = None
        super().handle_websocket_upgrade()
        del self.parser

    def connection_lost(self, exc: Exception | None) -> None:
        cycle, self._answering = self._answering, None
        self.pipeline.clear()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)


class FrameProtocol(WebSocketsSansIOProtocol):
    """One connection, and its `line`. `outbox` is shared by those of one server."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        outbox: Outbox | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.line = Line(outbox or Outbox())
        self.logger = _Quiet(logging.getLogger("jitney.streaming"), {})  # type: ignore[assignment]

    # What uvicorn calls

    async def run_asgi(self) -> None:
        if not self.config.ws_per_message_deflate:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = {"sender": self.line}
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        self.line.flush()
        await super().send(message)
        if self.close_sent:
            self.line.close()

    def shutdown(self) -> None:
        if self._is_garbled:
            return
        self.line.flush()
        self.line.close()
        super().shutdown()

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.line.open(transport)
        self.transport = cast(asyncio.Transport, SettledTransport(self.transport, self.line))
        if hasattr(transport, "max_size"):  # asyncio's own transports
            transport.max_size = READ_BYTES
        connection = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_HELD_BYTES)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.line.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.line.resume()

    def eof_received(self) -> None:
        """The transport closes itself after this."""
        self.line.settle()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.line.close()
        super().connection_lost(exc)

    def handle_cont(self, event: Frame) -> None:
        if not isinstance(self.frames[0], bytearray):
            self.frames = [bytearray(self.frames[0])]  # type: ignore[list-item]
        self.frames[0] += event.data
        if event.fin:
            self.frames = [bytes(self.frames[0])]
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """Reading goes on beside one message that waits, and stops at the second: nearly always the application is
        there for it, and to stop and go on costs two calls of the system."""
        was_paused, self.read_paused = self.read_paused, True
        super().send_receive_event_to_app()
        if not was_paused and self.queue.qsize() > 1:
            self.transport.pause_reading()
        elif not was_paused:
            self.read_paused = False

    def handle_ping(self) -> None:
        """The pongs of one read go out together, in `data_received`."""

    @property
    def _is_garbled(self) -> bool:
        """Whether the handshake cannot be read, of which uvicorn takes no notice."""
        return isinstance(self.conn.handshake_exc, InvalidMessage)

    def _refuse_garbled(self) -> None:
        """The connection is over with this."""
        error = self.conn.handshake_exc
        cause = error.__cause__ if error is not None else None
        is_long = isinstance(cause, SecurityError)
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if is_long else HTTPStatus.BAD_REQUEST
        body = invalid(f"the WebSocket handshake: {cause}", code="invalid_handshake", status=status).body()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_garbled:
            if not self.transport.is_closing():
                self._refuse_garbled()
            return
        pongs = self.conn.data_to_send()
        if pongs and not self.transport.is_closing():
            self.transport.write(b"".join(pongs))
            if self.transport.get_write_buffer_size() > MAX_PONG_BYTES:
                self.transport.abort()


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """Without the line that uvicorn writes for each handshake, which shows the query, and the traceback that it writes
    for text that is not UTF-8, which is the client's fault."""

    level = logging.WARNING

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        pass

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        if not str(msg).startswith(UNFINISHED):
            super().error(msg, *args, **kwargs)

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        if not str(msg).startswith("Invalid UTF-8"):
            super().exception(msg, *args, **kwargs)
