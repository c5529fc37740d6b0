"""A client for `WS /v1/responses`: many answers at once over one socket, none lost with it. Loads no torch.

    async with connect("http://127.0.0.1:8000") as client:
        async for event in client.stream("Why is the sky blue?", max_output_tokens=64):
            print(event.text, end="")

Leaving the loop cancels the answer. When the socket closes in mid-answer the client connects again and follows every
answer from where it was, so that the texts of the events join to the whole, without a gap and without a repetition.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from ..runtime.errors import InvalidField
from ..runtime.events import Event
from .client_events import ENDINGS, ConnectionLost, event_of, lost

NUM_LANES = 16
"""As many answers as a connection has in flight; more wait here for a lane."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
FINAL_CODES = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""Close codes after which trying again would end the same way."""


class Client:
    """One connection, which heals itself: an outage of up to `max_outage_s` is not seen by those who read answers.

    `url` is the server's, with or without `/v1`; http and ws mean the same.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        max_outage_s: float = 60.0,
    ) -> None:
        self._url = _socket_url(url)
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._defaults = {} if model is None else {"model": model}
        self._max_outage_s = max_outage_s
        self._lanes = {f"lane-{number}": _Lane(f"lane-{number}") for number in range(NUM_LANES)}
        self._free = asyncio.Queue[_Lane]()
        self._is_up = False
        self._lost: str | None = None
        for lane in self._lanes.values():
            self._free.put_nowait(lane)

    async def __aenter__(self) -> Client:
        """Raises `ConnectionLost` with the server's reason if it refuses, `OSError` if it is not there."""
        self._socket = await self._dial()
        self._is_up = True
        self._reader = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._lost = "the client was closed"
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader
        await self._socket.close()

    async def stream(self, input: str | list[dict[str, Any]], **fields: Any) -> AsyncGenerator[Event]:
        """The events of one answer: deltas, then one `done`. `fields` are those of `response.create`.

        Leaving the loop, or cancelling the task, cancels the answer. Raises `RequestError`, `QueueFull`,
        `EngineClosed` or `ConnectionLost`.
        """
        lane = await self._free.get()
        create = {"type": "response.create", "stream_id": lane.id, "input": input, **self._defaults, **fields}
        try:
            lane.open(create)
            await self._post(lane)
            while True:
                event = event_of(await lane.events.get())
                if event is not None:
                    yield event
                if event is not None and event.kind == "done":
                    return
        finally:
            await self._leave(lane)

    async def cancel(self, response_id: str) -> None:
        """End an answer; its stream then ends with `cancelled`. Raises `ConnectionLost` where there is no connection
        at the moment."""
        try:
            await self._send({"type": "response.cancel", "response_id": response_id})
        except ConnectionClosed as exc:
            raise ConnectionLost(f"{self._url}: {exc}") from exc

    async def _leave(self, lane: _Lane) -> None:
        """A lane whose answer is not over is free when the reader has seen its end."""
        lane.events = asyncio.Queue()
        if not lane.is_open:
            self._free.put_nowait(lane)
            return
        lane.is_abandoned = True
        if self._is_up:
            with suppress(ConnectionClosed):
                await self._send({"type": "response.cancel", "stream_id": lane.id})

    async def _post(self, lane: _Lane) -> None:
        """Say on the connection at hand what the lane wants; without one, the next connection says it."""
        if self._lost is not None:
            self._route(lost(lane.id, self._lost))
        elif self._is_up:
            lane.is_posted = True
            with suppress(ConnectionClosed):
                await self._send(lane.wish())

    async def _send(self, frame: dict[str, Any]) -> None:
        await self._socket.send(msgspec.json.encode(frame).decode())

    async def _run(self) -> None:
        """Read until the client is closed, over as many connections as it takes."""
        try:
            while self._lost is None:
                code = None
                try:
                    async for frame in self._socket:
                        self._route(msgspec.json.decode(frame))
                except ConnectionClosed as exc:
                    code = exc.rcvd.code if exc.rcvd is not None else None
                self._is_up = False
                await self._heal(code)
        finally:
            for lane in self._lanes.values():
                if lane.is_open:
                    self._route(lost(lane.id, self._lost or "the client was closed"))

    async def _heal(self, code: int | None) -> None:
        """Connect again, and take up every open lane where it was."""
        why = f"{self._url}: the connection closed{'' if code is None else f' with {code}'}"
        pause_s = FIRST_PAUSE_S
        try:
            async with asyncio.timeout(0 if code in FINAL_CODES else self._max_outage_s):
                while not self._is_up:
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                    with suppress(OSError, InvalidHandshake, ConnectionClosed):
                        self._socket = await self._dial()
                        await self._take_up()
        except TimeoutError:
            self._lost = why
        except ConnectionLost as exc:
            self._lost = str(exc)

    async def _take_up(self) -> None:
        """A lane that opens meanwhile is said too, or finds the connection up."""
        for lane in self._lanes.values():
            lane.is_posted = False
        while True:
            due = [lane for lane in self._lanes.values() if lane.is_open and not lane.is_posted]
            if not due:
                break
            lane = due[0]
            lane.is_posted = True
            if lane.is_abandoned and lane.response_id is None:
                self._route(
                    lost(lane.id, "")
                )  # nobody waits for an answer that may never have been asked for
            else:
                await self._send(lane.wish())
        self._is_up = True

    async def _dial(self) -> ClientConnection:
        """Raises `ConnectionLost` where the server refuses for good; what it may get over is raised as it comes."""
        options: dict[str, Any] = {"additional_headers": self._headers, "compression": None, "max_size": None}
        try:
            return await dial(self._url, **options)
        except InvalidStatus as exc:
            status, body = exc.response.status_code, (exc.response.body or b"").decode(errors="replace")
            if status >= 500 or status == 429:
                raise
            raise ConnectionLost(f"{self._url}: refused with {status}: {body}") from exc

    def _route(self, frame: dict[str, Any]) -> None:
        lane = self._lanes.get(frame.get("stream_id", ""))
        if lane is None or not lane.is_open:
            return
        lane.heard(frame)
        if not lane.is_abandoned:
            lane.events.put_nowait(frame)
        elif not lane.is_open:
            lane.is_abandoned = False
            self._free.put_nowait(lane)


connect = Client
"""`async with connect(url) as client:`"""


class _Lane:
    """One answer at a time. `is_open`: its end has not been read; `is_posted`: the connection at hand knows of it."""

    def __init__(self, lane_id: str) -> None:
        self.id = lane_id
        self.is_open = self.is_posted = self.is_abandoned = False
        self.response_id: str | None = None
        self.events = asyncio.Queue[dict[str, Any]]()
        self._create: dict[str, Any] = {}
        self._seq = -1

    def open(self, create: dict[str, Any]) -> None:
        self._create, self._seq = create, -1
        self.is_open, self.is_posted, self.response_id = True, False, None

    def heard(self, frame: dict[str, Any]) -> None:
        self.is_open = frame["type"] not in ENDINGS
        self._seq = max(self._seq, frame.get("sequence_number", -1))
        if self.response_id is None and "response" in frame:
            self.response_id = frame["response"]["id"]

    def wish(self) -> dict[str, Any]:
        """What a connection is to be told of the answer: to begin it, to go on with it, or to end it."""
        if self.response_id is None:
            return self._create
        place = {"response_id": self.response_id, "stream_id": self.id}
        if self.is_abandoned:
            return {"type": "response.cancel", **place}
        return {"type": "jitney:response.resume", **place, "starting_after": self._seq}


def _socket_url(url: str) -> str:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise InvalidField("url", "http://, https://, ws:// or wss:// and a host", url)
    path = parts.path.rstrip("/").removesuffix("/responses").removesuffix("/v1")
    return f"{scheme}://{parts.netloc}{path}/v1/responses"
