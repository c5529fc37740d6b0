"""Ten thousand mutated frames and ten thousand mutated bodies through the whole app, with an engine behind it: no
crash, no 5xx, nothing left open, and memory where it was."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from typing import Any

import psutil
import pytest
from asgi_clients import Exchange, Socket
from simulated_server import simulate

from jitney.runtime import DynamicEngine

TEXT = [{"role": "user", "content": "hi"}]
FRAMES: list[dict[str, Any]] = [
    {"type": "response.create", "input": "hi", "max_output_tokens": 2, "stream_id": "a", "seed": 3},
    {
        "type": "response.create",
        "input": TEXT,
        "max_output_tokens": 2,
        "jitney": {"credit": 9, "priority": 1},
    },
    {
        "type": "response.create",
        "input": "hi",
        "generate": False,
        "instructions": "x",
        "metadata": {"a": "b"},
    },
    {"type": "response.create", "input": "hi", "max_output_tokens": 1, "previous_response_id": "resp_1"},
    {"type": "response.cancel", "response_id": "resp_1", "stream_id": "a"},
    {"type": "response.steer", "previous_response_id": "resp_1", "input": "x"},
    {"type": "jitney:response.resume", "response_id": "resp_1", "starting_after": 3},
    {"type": "jitney:credit", "stream_id": "a", "credit": 3},
]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": TEXT, "max_tokens": 2, "n": 2, "stop": ["a"], "logprobs": True}),
    ("/v1/chat/completions", {"messages": TEXT, "max_tokens": 2, "stream": True, "top_p": 0.5}),
    ("/v1/completions", {"prompt": ["hi", [104, 105]], "max_tokens": 2, "echo": True, "logprobs": 1}),
    ("/v1/responses", {"input": TEXT, "max_output_tokens": 2, "top_logprobs": 1, "temperature": 0.5}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2, "stream": True, "background": True}),
    ("/v1/tokenize", {"prompt": "hi", "add_special_tokens": True}),
    ("/v1/detokenize", {"tokens": [104, 105]}),
]
ODD: list[Any] = [None, True, 0, -1, 2**63, 10**30, 1e308, -0.0, "", "\x00", "é" * 50, "\ud800", [], [[]], {}]
ODD += [{"": {}}, [None], "response.create", "5", TEXT, "hi"]


def mutated(rng: random.Random, value: Any) -> Any:
    """A copy with one thing in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        action = rng.random()
        if action < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.2:
            return {**value, rng.choice(["wibble", "", "n", "stop", "input", "jitney"]): rng.choice(ODD)}
        return {**value, key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], mutated(rng, value[index]), *value[index + 1 :]]
    return rng.choice(ODD)


def raw(rng: random.Random, value: Any) -> str:
    """A mutated value as JSON, now and then with characters changed, cut or doubled."""
    for _ in range(rng.randrange(3)):
        value = mutated(rng, value)
    text = json.dumps(value)
    at, action = rng.randrange(len(text) + 1), rng.random()
    if action < 0.1:
        return text[:at] + chr(rng.randrange(1, 300)) + text[at + 1 :]
    if action < 0.15:
        return text[:at]
    return text[:at] + text[at // 2 :] if action < 0.2 else text


async def _frames(app: Any, rng: random.Random, count: int) -> None:
    """Over sockets that live for a few dozen frames each. Frames that name a response name one that exists."""
    ids = ["resp_1"]
    while count > 0:
        async with Socket(app) as socket:
            reading = asyncio.ensure_future(_check_all(socket, ids))
            for _ in range(min(count, 50)):
                frame = {**rng.choice(FRAMES)}
                for name in {"response_id", "previous_response_id"} & frame.keys():
                    frame[name] = rng.choice(ids[-20:])
                socket.send_text(raw(rng, frame))
                await asyncio.sleep(rng.choice([0, 0, 0.01]))
            count -= 50
            await asyncio.sleep(0.1)
            reading.cancel()
            await asyncio.wait({reading})
            assert reading.cancelled() or reading.exception() is None, reading.exception()
        await socket.task


async def _check_all(socket: Socket, ids: list[str]) -> None:
    while True:
        frame = await socket.recv()
        ids += [frame["response"]["id"]] if frame["type"] == "response.created" else []
        assert frame["type"] != "websocket.close", frame
        if frame["type"] == "error":
            assert 400 <= frame["status"] < 500 and frame["error"]["message"], frame


async def _bodies(app: Any, rng: random.Random, count: int) -> None:
    for _ in range(count):
        path, seed = rng.choice(BODIES)
        body = raw(rng, seed).encode("utf-8", "surrogatepass")
        async with Exchange(app, "POST", path, body) as exchange:
            assert exchange.status < 500, (path, body)
            if exchange.status == 200 and rng.random() < 0.8:
                while not exchange._is_whole:
                    await exchange._piece()


@pytest.mark.parametrize("what", [_frames, _bodies])
def test_ten_thousand(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: Any) -> None:
    rng = random.Random(5)

    async def body(engine: DynamicEngine, app: Any) -> None:
        process = psutil.Process()
        await what(app, rng, 1000)
        before = process.memory_info().rss
        await asyncio.gather(*(what(app, random.Random(seed), 900) for seed in range(10)))
        gc.collect()
        assert process.memory_info().rss - before < 50 * 2**20

    simulate(monkeypatch, body, keep_finished_s=1)
    failed = [r for r in caplog.records if r.levelname == "ERROR" and r.name != "jitney"]
    assert not failed, "the simulated worker may be stalled at the end; nothing else may fail"
