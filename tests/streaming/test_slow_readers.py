"""Clients that stop reading, on a real server: what is held for each is bounded, and nobody else waits."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import connect

from jitney.runtime.testing import Reply
from jitney.streaming import wire
from jitney.streaming.line import Line

MAX_BUFFERED = 256 * 2**10
TEXT = "tock " * 500
NUM_STALLED, LANES = 6, 8


class Watched(Line):
    """Remembers the most that it ever held."""

    most = 0

    def _watch(self) -> None:
        held = self.held_bytes + self._transport.get_write_buffer_size()
        Watched.most = max(Watched.most, held)

    def put_frame(self, payload: bytes) -> None:
        super().put_frame(payload)
        self._watch()

    def flush(self) -> None:
        super().flush()
        self._watch()


def small_socket(url: str) -> socket.socket:
    """A connection whose receive buffer fills at once."""
    parts = urlsplit(url)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((parts.hostname, parts.port))
    return raw


async def stall(url: str) -> Any:
    """A socket that asks on every lane and never reads."""
    uri = url.replace("http", "ws") + "/v1/responses"
    stalled = await connect(uri, sock=small_socket(url), proxy=None, max_queue=1, close_timeout=0.1)
    stalled.transport.pause_reading()
    for lane in range(LANES):
        create = {"type": "response.create", "input": "long", "stream_id": str(lane)}
        await stalled.send(json.dumps(create))
    return stalled


async def test_what_is_held_for_a_stalled_reader_is_bounded(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "Line", Watched)
    monkeypatch.setattr(Watched, "most", 0)
    async with serving(Reply(match="long", text=TEXT)) as served:
        stalled = [await stall(served.url) for _ in range(NUM_STALLED)]
        async with asyncio.timeout(60):
            while sum(served.engine.stats().finished.values()) < NUM_STALLED * LANES:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        uri = served.url.replace("http", "ws") + "/v1/responses"
        async with connect(uri, proxy=None) as quick:
            await quick.send(json.dumps({"type": "response.create", "input": "sky"}))
            frames = [json.loads(await quick.recv())]
            while frames[-1]["type"] != "response.completed":
                frames.append(json.loads(await quick.recv()))
        assert 0 < Watched.most <= MAX_BUFFERED, "most of what was generated is held by the logs alone"
        late = stalled[0]
        late.transport.resume_reading()
        texts: dict[str, str] = {}
        ended = 0
        while ended < LANES:
            frame = json.loads(await late.recv())
            lane = frame["stream_id"]
            texts[lane] = texts.get(lane, "") + frame.get("delta", "")
            ended += frame["type"] == "response.completed"
        assert set(texts.values()) == {TEXT} and len(texts) == LANES
        for each in stalled:
            each.transport.abort()
