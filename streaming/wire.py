"""The short way of a text frame: uvicorn's WebSocket protocol with frames written straight to the transport.

Handshake, reading, pings and close stay uvicorn's. A handler asks `frame_sender` for a function and gets the short way
where the server runs this protocol, else plain ASGI; the bytes on the wire are the same. Frames that are sent in one
turn of the loop, by however many tasks, go out in one write: the tokens of one step cost a socket one system call.

A socket holds at most `MAX_HELD_BYTES` here, as much in the transport's buffer and in the system's, and one frame:
whoever sends waits for room.
What a client sends cannot make it hold more than a message, nor the loop for long: fragments are joined as they come,
little is read at a time, and a client that floods it with pings without reading the replies is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio.transports import BaseTransport
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame

EXTENSION = "jitney.frames"
MAX_HELD_BYTES = 64 * 2**10
MAX_PONG_BYTES = 256 * 2**10
READ_BYTES = 8 * 2**10
"""Read at a time: at worst some 1,300 frames, which take 5 ms to parse."""

FrameSender = Callable[[bytes], Awaitable[None]]


def frame_sender(websocket: WebSocket) -> FrameSender:
    """Sends one text frame of UTF-8 bytes, after accept. Waits while the client lags; raises `WebSocketDisconnect`
    once the socket is closed."""
    fast: dict[str, FrameSender] | None = websocket.scope.get("extensions", {}).get(EXTENSION)
    if fast is not None:
        return fast["send"]

    async def send(frame: bytes) -> None:
        try:
            await websocket.send({"type": "websocket.send", "text": frame.decode()})
        except RuntimeError as exc:  # it is closing
            raise WebSocketDisconnect(1006) from exc

    return send


class FrameProtocol(WebSocketsSansIOProtocol):
    """One connection. Frames wait in `_frames` until the end of the loop's turn."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _Quiet(logging.getLogger("jitney.streaming"), {})  # type: ignore[assignment]
        self._frames: list[bytes] = []
        self._held_bytes = 0
        self._room = asyncio.Event()

    async def send_frame(self, payload: bytes) -> None:
        while not self.disconnected and (self._held_bytes >= MAX_HELD_BYTES or not self.writable.is_set()):
            self._room.clear()
            await self._room.wait()
        if self.disconnected or self.close_sent or self.transport.is_closing():
            raise WebSocketDisconnect(1006)
        if not self._frames:
            self.loop.call_soon(self._flush)
        self._frames += (_header(len(payload)), payload)
        self._held_bytes += len(payload)

    def _flush(self) -> None:
        if self._frames and not self.disconnected and not self.transport.is_closing():
            self.transport.write(b"".join(self._frames))
        self._frames.clear()
        self._held_bytes = 0
        self._room.set()

    # What uvicorn calls

    async def run_asgi(self) -> None:
        if not self.config.ws_per_message_deflate:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = {"send": self.send_frame}
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        self._flush()
        await super().send(message)

    def shutdown(self) -> None:
        self._flush()
        super().shutdown()

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # asyncio's own transports
            transport.max_size = READ_BYTES
        connection = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_HELD_BYTES)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._flush()

    def handle_cont(self, event: Frame) -> None:
        if not isinstance(self.frames[0], bytearray):
            self.frames = [bytearray(self.frames[0])]  # type: ignore[list-item]
        self.frames[0] += event.data
        if event.fin:
            self.frames = [bytes(self.frames[0])]
            self.send_receive_event_to_app()

    def handle_ping(self) -> None:
        """The pongs of one read go out together, in `data_received`."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
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

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        if not str(msg).startswith("Invalid UTF-8"):
            super().exception(msg, *args, **kwargs)


def _header(length: int) -> bytes:
    """Of an unfragmented text frame from a server (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes((0x81, length))
    if length < 2**16:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")
