"""Many answers at a time: one wake-up of the loop a step, and one write a step to a socket, however many its lanes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from jitney.runtime.testing import Reply
from jitney.streaming.line import Line

LONG = Reply(match="long", text="x" * 300, token_s=0.004)


async def test_one_wake_up_a_step_for_sixty_four_sockets(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, wakes = asyncio.get_running_loop(), [0]
    wake = loop.call_soon_threadsafe

    def counted(*arguments: Any, **options: Any) -> Any:
        wakes[0] += 1
        return wake(*arguments, **options)

    async def read(served: Any) -> str:
        async with connect(served.url.replace("http", "ws") + "/v1/responses", proxy=None) as ws:
            await ws.send(json.dumps({"type": "response.create", "input": "long"}))
            text = ""
            while (event := json.loads(await ws.recv()))["type"] != "response.completed":
                text += event.get("delta", "") if event["type"] == "response.output_text.delta" else ""
            return text

    async with serving(LONG, config={"max_rows": 64}) as served:
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        assert await asyncio.gather(*(read(served) for _ in range(64))) == [LONG.text] * 64
        stats = served.engine.stats()
    assert stats.generated_tokens == 64 * 301
    assert stats.steps <= wakes[0] <= stats.steps + 2 * 64 + 50  # each prompt is tokenised on a thread, too


async def test_one_write_a_step_for_sixteen_lanes(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    flush = Line.flush

    def counted(self: Line) -> None:
        if self._frames:
            writes.append(len(self._frames) // 2)
        flush(self)

    monkeypatch.setattr(Line, "flush", counted)
    async with serving(LONG) as served:
        async with connect(served.url.replace("http", "ws") + "/v1/responses", proxy=None) as ws:
            for lane in range(16):
                await ws.send(
                    json.dumps({"type": "response.create", "input": "long", "stream_id": f"l{lane}"})
                )
            ended = 0
            while ended < 16:
                ended += json.loads(await ws.recv())["type"] == "response.completed"
        steps = served.engine.stats().steps
    assert sum(writes) > 2 * len(writes)
    assert len(writes) <= steps + 100


async def test_a_loop_that_was_held_up_sends_what_waited_in_longer_deltas(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, wakes = asyncio.get_running_loop(), [0]
    wake, fast = loop.call_soon_threadsafe, Reply(match="fast", text="0123456789" * 50, token_s=0.002)

    def counted(*arguments: Any, **options: Any) -> Any:
        wakes[0] += 1
        return wake(*arguments, **options)

    async with serving(fast) as served:
        served.pace.hold(10 * fast.token_s)
        async with connect(served.url.replace("http", "ws") + "/v1/responses", proxy=None) as ws:
            await ws.send(json.dumps({"type": "response.create", "input": "fast"}))
            frames = [json.loads(await ws.recv())]
            while frames[-1]["type"] != "response.output_text.delta":
                frames.append(json.loads(await ws.recv()))
            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
            served.pace.go()
            while wakes[0] < 100:  # nothing else runs on this loop meanwhile
                pass
            while frames[-1]["type"] != "response.completed":
                frames.append(json.loads(await ws.recv()))
    deltas = [frame["delta"] for frame in frames if frame["type"] == "response.output_text.delta"]
    assert "".join(deltas) == fast.text
    assert max(map(len, deltas)) >= 10 and len(deltas) <= 500 - 9
    numbers = [frame["sequence_number"] for frame in frames]
    assert numbers == sorted(set(numbers))
