"""Server-sent events on their way out. Where nothing else is said, a comment says every 15 s that we are alive."""

from __future__ import annotations

from starlette.types import Send

from .ending import Ending

SILENCE_S = 15.0
COMMENT = b": still here\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """`open` once, then `put` whole events, then `close` once; `keep_alive` beside them until `rest`, or cancelled."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._num_sent = 0
        self._end = Ending()

    async def open(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

    async def put(self, events: bytes) -> None:
        self._num_sent += 1
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def close(self, events: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": events, "more_body": False})

    async def keep_alive(self) -> None:
        seen = self._num_sent
        while not await self._end.within(SILENCE_S):
            if self._num_sent == seen:
                await self.put(COMMENT)
            seen = self._num_sent

    async def rest(self) -> None:
        """`keep_alive` has ended."""
        await self._end.come()


def event(frame: bytes) -> bytes:
    """A frame of the Responses API, whose type comes first, as an event of that name."""
    start = len(b'{"type":"')
    return b"event: " + frame[start : frame.index(b'"', start)] + b"\ndata: " + frame + b"\n\n"
