"""A client for `WS /v1/responses`: many answers at once over one socket. Loads no torch.

    async with Client("http://127.0.0.1:8000") as client:
        async for event in client.stream("Why is the sky blue?", max_output_tokens=64):
            print(event.text, end="")

Leaving the loop cancels the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ..runtime.errors import EngineClosed, InvalidField, JitneyError, ModelNotFound, QueueFull, RequestError
from ..runtime.events import Event, Times, Usage

NUM_LANES = 16
"""As many answers as a connection has in flight; more wait here for a lane."""

ENDINGS = ("response.completed", "response.incomplete", "response.failed", "error")
CLOSED = "connection_closed"
"""The code of the error that the reader makes up for the answers that a lost connection cuts off."""


class ConnectionLost(JitneyError):
    """The socket was refused, or closed before the answer was complete."""


class Client:
    """One connection. `url` is the server's, with or without `/v1`; http and ws mean the same."""

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        self._url = _socket_url(url)
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._defaults = {} if model is None else {"model": model}
        self._lanes = {f"lane-{number}": _Lane(f"lane-{number}") for number in range(NUM_LANES)}
        self._free = asyncio.Queue[_Lane]()
        for lane in self._lanes.values():
            self._free.put_nowait(lane)

    async def __aenter__(self) -> Client:
        """Raises `ConnectionLost` with the server's reason if it refuses, `OSError` if it is not there."""
        options: dict[str, Any] = {"additional_headers": self._headers, "compression": None, "max_size": None}
        try:
            self._socket: ClientConnection = await connect(self._url, **options)
        except InvalidStatus as exc:
            reason = (exc.response.body or b"").decode(errors="replace")
            raise ConnectionLost(f"{self._url}: refused with {exc.response.status_code}: {reason}") from exc
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._socket.close()
        await self._reader

    async def stream(self, input: str | list[dict[str, Any]], **fields: Any) -> AsyncGenerator[Event, None]:
        """The events of one answer: deltas, then one `done`. `fields` are those of `response.create`.

        Leaving the loop, or cancelling the task, cancels the answer. Raises `RequestError`, `QueueFull`,
        `EngineClosed` or `ConnectionLost`.
        """
        lane = await self._free.get()
        create = {"type": "response.create", "stream_id": lane.id, "input": input, **self._defaults, **fields}
        try:
            await self._send(lane, create)
            while True:
                event = _event(await lane.events.get())
                if event is not None:
                    yield event
                if event is not None and event.kind == "done":
                    return
        finally:
            await self._leave(lane)

    async def cancel(self, response_id: str) -> None:
        """End an answer of this connection; its stream then ends with `cancelled`."""
        await self._send(None, {"type": "response.cancel", "response_id": response_id})

    async def _leave(self, lane: _Lane) -> None:
        """A lane whose answer is not over is free when the reader has seen its end."""
        lane.events = asyncio.Queue()
        if not lane.is_open:
            self._free.put_nowait(lane)
            return
        lane.is_abandoned = True
        with suppress(ConnectionLost):
            await self._send(None, {"type": "response.cancel", "stream_id": lane.id})

    async def _send(self, opens: _Lane | None, frame: dict[str, Any]) -> None:
        text = msgspec.json.encode(frame).decode()
        try:
            if opens is not None:
                opens.is_open = True
            await self._socket.send(text)
        except ConnectionClosed as exc:
            if opens is not None:
                opens.is_open = False
            raise ConnectionLost(f"{self._url}: {exc}") from exc

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                self._route(msgspec.json.decode(frame))
        except ConnectionClosed:
            pass
        finally:
            for lane in self._lanes.values():
                if lane.is_open:
                    self._route({"type": "error", "stream_id": lane.id, "error": {"code": CLOSED}})

    def _route(self, event: dict[str, Any]) -> None:
        lane = self._lanes.get(event.get("stream_id", ""))
        if lane is None:
            return
        lane.is_open = lane.is_open and event["type"] not in ENDINGS
        if not lane.is_abandoned:
            lane.events.put_nowait(event)
        elif not lane.is_open:
            lane.is_abandoned = False
            self._free.put_nowait(lane)


class _Lane:
    """One answer at a time. `is_open`: its end has not been read from the socket."""

    def __init__(self, lane_id: str) -> None:
        self.id = lane_id
        self.is_open = False
        self.is_abandoned = False
        self.events = asyncio.Queue[dict[str, Any]]()


def _event(frame: dict[str, Any]) -> Event | None:
    """What a frame means to the reader of an answer. Raises what an error frame says."""
    kind = frame["type"]
    if kind == "error":
        raise _error(frame)
    if kind == "response.output_text.delta":
        response_id = "resp_" + frame["item_id"].removeprefix("msg_")
        return Event(response_id, frame["sequence_number"], "delta", text=frame["delta"])
    return _done(frame["sequence_number"], frame["response"]) if kind in ENDINGS else None


def _done(seq: int, response: dict[str, Any]) -> Event:
    usage, extras = response["usage"], response["jitney"]
    cached = usage["input_tokens_details"]["cached_tokens"]
    return Event(
        response["id"],
        seq,
        "done",
        finish_reason=extras["finish_reason"],
        usage=Usage(usage["input_tokens"], usage["output_tokens"], cached),
        times=None if extras["times"] is None else msgspec.convert(extras["times"], Times),
        error=(response["error"] or {}).get("message"),
    )


def _error(frame: dict[str, Any]) -> JitneyError:
    error = frame["error"]
    message, field = error.get("message", ""), error.get("param")
    if error["code"] == CLOSED:
        return ConnectionLost("the connection closed before the answer was complete")
    if frame["status"] == 429:
        retry_after_s = float(error.get("headers", {}).get("retry-after", 1))
        return QueueFull(message, retry_after_s=retry_after_s)
    if frame["status"] == 503:
        return EngineClosed(message)
    return (
        ModelNotFound(message, field=field) if frame["status"] == 404 else RequestError(message, field=field)
    )


def _socket_url(url: str) -> str:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise InvalidField("url", "http://, https://, ws:// or wss:// and a host", url)
    path = parts.path.rstrip("/").removesuffix("/responses").removesuffix("/v1")
    return f"{scheme}://{parts.netloc}{path}/v1/responses"
