"""Answers as a client sees them: when each piece of an answer came. Over WebSocket or server-sent events, without a
library of jitney's own between the socket and the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from ....runtime.errors import JitneyError
from .shapes import words

DELTA, COMPLETED = "response.output_text.delta", "response.completed"
FAILED = ("response.failed", "response.incomplete", "response.cancelled", "error")


class Asked(msgspec.Struct, frozen=True):
    prompt: list[int]
    max_tokens: int


class Timed(msgspec.Struct, frozen=True):
    """Seconds: to the first piece, from the first to the last, and between two pieces that follow each other."""

    first_s: float
    rest_s: float
    num_tokens: int
    gaps_s: list[float]

    @property
    def token_s(self) -> float:
        return self.rest_s / max(1, self.num_tokens - 1)


class Clock:
    """Of one answer."""

    def __init__(self) -> None:
        self._asked = self._last = time.perf_counter()
        self._times: list[float] = []

    def piece(self) -> None:
        self._times.append(time.perf_counter())

    def timed(self, num_tokens: int) -> Timed:
        if not self._times:
            raise JitneyError("an answer without a piece")
        times = self._times
        gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
        return Timed(times[0] - self._asked, times[-1] - times[0], num_tokens, gaps)


class WebSocketLoad:
    """Sockets that are kept open, each with `lanes` answers at a time."""

    def __init__(self, url: str, model: str, lanes: int) -> None:
        self._url = url.replace("http", "ws", 1) + "/v1/responses"
        self._model, self._lanes = model, lanes
        self._free: asyncio.Queue[tuple[_Socket, str]] = asyncio.Queue()
        self._sockets: list[_Socket] = []

    async def open(self, num_answers: int) -> None:
        for number in range(-(-num_answers // self._lanes)):
            socket = _Socket(await connect(self._url, compression=None, max_size=None))
            self._sockets.append(socket)
            for lane in range(min(self._lanes, num_answers - number * self._lanes)):
                self._free.put_nowait((socket, f"lane-{lane}"))

    async def close(self) -> None:
        for socket in self._sockets:
            await socket.close()

    async def ask(self, asked: Asked) -> Timed:
        """Raises `JitneyError` where the answer fails."""
        socket, lane = await self._free.get()
        body = {
            "type": "response.create", "stream_id": lane, "model": self._model, "input": words(asked.prompt),
            "max_output_tokens": asked.max_tokens, "temperature": 0.6, "ignore_eos": True, "store": False,
        }  # fmt: skip
        try:
            return await socket.ask(lane, msgspec.json.encode(body).decode())
        finally:
            self._free.put_nowait((socket, lane))


class _Frame(msgspec.Struct):
    type: str
    stream_id: str = ""
    response: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Socket:
    """Frames go to the lane that they name, at the time at which they were read."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._open: dict[str, tuple[Clock, asyncio.Future[Timed]]] = {}
        self._reader = asyncio.create_task(self._read())

    async def ask(self, lane: str, frame: str) -> Timed:
        done: asyncio.Future[Timed] = asyncio.get_running_loop().create_future()
        self._open[lane] = Clock(), done
        await self._socket.send(frame)
        return await done

    async def close(self) -> None:
        await self._socket.close()
        await self._reader

    async def _read(self) -> None:
        decoder = msgspec.json.Decoder(_Frame)
        async for text in self._socket:
            frame = decoder.decode(text)
            clock, done = self._open[frame.stream_id]
            if frame.type == DELTA:
                clock.piece()
            elif frame.type == COMPLETED or frame.type == "response.incomplete":
                usage = msgspec.json.decode(frame.response)["usage"]
                done.set_result(clock.timed(usage["output_tokens"]))
            elif frame.type in FAILED:
                said = bytes(frame.error or frame.response).decode()
                done.set_exception(JitneyError(f"{frame.type}: {said[:300]}"))
        for _, done in self._open.values():
            if not done.done():
                done.set_exception(JitneyError("the socket closed in the middle of an answer"))


class EventStreamLoad:
    """`POST /v1/completions`, which every server speaks: a connection an answer, kept open for the next."""

    def __init__(self, url: str, model: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._model = model
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._num_open = 0

    async def open(self, num_answers: int) -> None:
        for _ in range(num_answers):
            self._free.put_nowait(await asyncio.open_connection(self._host, self._port, limit=2**20))
        self._num_open = num_answers

    async def close(self) -> None:
        for _ in range(self._num_open):
            _, writer = await self._free.get()
            writer.close()

    async def ask(self, asked: Asked) -> Timed:
        """Raises `JitneyError` where the answer fails."""
        reader, writer = await self._free.get()
        body = msgspec.json.encode(
            {
                "model": self._model,
                "prompt": asked.prompt,
                "max_tokens": asked.max_tokens,
                "stream": True,
                "ignore_eos": True,
                "temperature": 0.6,
                "stream_options": {"include_usage": True},
            }  # fmt: skip
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        clock, num_tokens = Clock(), 0
        try:
            writer.write(head.encode() + body)
            async for data in events(reader):
                if b'"choices":[]' in data:
                    num_tokens = msgspec.json.decode(data)["usage"]["completion_tokens"]
                elif data != b"[DONE]":
                    clock.piece()
            return clock.timed(num_tokens)
        finally:
            self._free.put_nowait((reader, writer))


async def events(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    """The data of each event of a chunked reply. Raises `JitneyError` where the status is not 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise JitneyError(f"refused: {head.splitlines()[0].decode()}")
    left = b""
    while size := int(await reader.readline(), 16):
        left += (await reader.readexactly(size + 2))[:-2]
        *whole, left = left.split(b"\n")
        for line in whole:
            if line.startswith(b"data: "):
                yield line[6:].rstrip(b"\r")
    await reader.readline()
