"""Frames on their way to a socket. What is sent in one turn of the loop, by however many tasks, goes out at its end in
one write: the tokens of one step cost a socket one system call, and all the sockets of a server one callback. Where
there is a `Sender`, it writes what is due to many."""

from __future__ import annotations

import asyncio
import logging
from asyncio.transports import BaseTransport, Transport
from typing import Any, cast

from starlette.websockets import WebSocketDisconnect

from .sender import FEW, Sender

MAX_HELD_BYTES = 64 * 2**10

logger = logging.getLogger("jitney.streaming")


class Outbox:
    """The lines that are due, all of one loop."""

    def __init__(self, sender: Sender | None = None) -> None:
        self.sender = sender
        self._due: list[Line] = []

    def close(self) -> None:
        """Each line writes for itself from now on."""
        sender, self.sender = self.sender, None
        if sender is not None:
            sender.close()

    def add(self, line: Line) -> None:
        if not self._due:
            asyncio.get_running_loop().call_soon(self._flush)
        self._due.append(line)

    def _flush(self) -> None:
        due, self._due = self._due, []
        if self.sender is None or len(due) < FEW:
            for line in due:
                line.flush()
            return
        self.sender.collect()
        taken = [(line, data) for line in due if (data := line.take()) is not None]
        self.sender.give([line for line, _ in taken], [data for _, data in taken])


class Line:
    """One connection's. `has_room`: a frame may be put now, where whoever sends would not wait.

    Slots, and few of them: with many sockets what a frame costs is mostly memory that is not in the processor's cache.
    """

    __slots__ = (
        "_frames", "_is_closed", "_is_idle", "_is_writable", "_outbox", "_room", "_transport", "fd", "handed",
        "has_room", "held_bytes",
    )  # fmt: skip

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._frames: list[bytes] = []
        self._is_writable, self._is_closed, self._is_idle = True, False, False
        self._room = asyncio.Event()
        self.has_room = True
        self.held_bytes = self.handed = 0
        self.fd = -1

    def open(self, transport: BaseTransport) -> None:
        self._transport = cast(Transport, transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and transport.get_extra_info("sslcontext") is None:
            self.fd = connection.fileno()

    @property
    def lags(self) -> bool:
        """Whether a frame would wait behind others."""
        return not self.has_room

    async def send_frame(self, payload: bytes) -> None:
        """Waits while the client lags; raises `WebSocketDisconnect` once the socket is closed."""
        while not self.has_room and not self._is_closed:
            self._room.clear()
            await self._room.wait()
        if self._is_closed or self._transport.is_closing():
            raise WebSocketDisconnect(1006)
        self.put_frame(payload)

    def put_frame(self, payload: bytes) -> None:
        """Without waiting. What is put while the socket closes is lost, as is what it is sending."""
        if not self._frames:
            self._outbox.add(self)
        self._frames.append(_header(len(payload)) + payload)
        self.held_bytes += len(payload)
        if self.held_bytes >= MAX_HELD_BYTES:
            self.has_room = False

    def flush(self) -> None:
        """Never raises: the lines behind it have their turn, whatever has befallen this connection."""
        self.settle()
        if self._frames:
            self.leave(b"".join(self._frames))
        self._let_go()

    def take(self) -> bytes | None:
        """What a sender is to write. None where the transport has other bytes to write first, and now these."""
        if not self._may_hand_over():
            self.flush()
            return None
        data = self._frames[0] if len(self._frames) == 1 else b"".join(self._frames)
        self._let_go()
        return data

    def leave(self, rest: bytes) -> None:
        """To the transport. Never raises, and what is left to one that closes is lost."""
        if self._is_closed or self._transport.is_closing():
            return
        self._is_idle = False
        try:
            self._transport.write(rest)
        except Exception:
            logger.exception("a connection that could not be written to is cut off")
            self._transport.abort()

    def settle(self) -> None:
        """Wait until what was handed over is out: whoever writes to the transport, or closes it, calls this before."""
        self._is_idle = False
        if self.handed and self._outbox.sender is not None:
            self._outbox.sender.settle(self.handed)
            self.handed = 0

    def _may_hand_over(self) -> bool:
        """Only a transport that somebody has used since it was idle is asked."""
        sender = self._outbox.sender
        if (
            sender is None
            or self.fd < 0
            or not self._frames
            or self._is_closed
            or self.handed > sender.collected
        ):
            return False
        if not self._is_idle:
            transport = self._transport
            self._is_idle = not (transport.is_closing() or transport.get_write_buffer_size())
        return self._is_idle

    def _let_go(self) -> None:
        self._frames.clear()
        self.held_bytes = 0
        if not self.has_room:
            self._look()

    def pause(self) -> None:
        """The transport holds enough."""
        self._is_writable = self.has_room = False

    def resume(self) -> None:
        self._is_writable = True
        self._look()

    def close(self) -> None:
        """Nothing more is sent; what waits to be sent is told. The descriptor may be closed after this."""
        self.settle()
        self._is_closed = True
        self._frames.clear()
        self._look()

    def _look(self) -> None:
        self.has_room = self._is_writable and not self._is_closed and self.held_bytes < MAX_HELD_BYTES
        self._room.set()


class SettledTransport:
    """A line's transport, for whoever else writes to it: what the line handed over goes before."""

    def __init__(self, transport: Transport, line: Line) -> None:
        self._transport, self._line = transport, line

    def write(self, data: bytes) -> None:
        self._line.settle()
        self._transport.write(data)

    def close(self) -> None:
        self._line.settle()
        self._transport.close()

    def abort(self) -> None:
        self._line.settle()
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _header(length: int) -> bytes:
    """Of an unfragmented text frame from a server (RFC 6455, section 5.2)."""
    if length < 126:
        return (0x8100 | length).to_bytes(2, "big")
    if length < 2**16:
        return (0x817E0000 | length).to_bytes(4, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")
