"""Answers whose connections break, in simulated time: the whole server from a seed, without a wire.

A thousand streams are cut one to five times at random, over WebSocket and over SSE, and each time resumed on either:
nothing is missing, nothing doubled. Who comes too late, or for another's answer, is told so.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from asgi_clients import Exchange, Socket, ask
from simulated_engine import CONTEXT, letter
from simulated_server import simulate

from jitney.runtime import DynamicEngine
from jitney.runtime.testing import ByteTokenizer, chain

ENDS = ("response.completed", "response.incomplete", "response.failed")
DELTAS = ("response.output_text.delta", "response.reasoning_text.delta")


def expected(text: str, seed: int, max_tokens: int) -> str:
    """The naive twin: what the model says to this message."""
    tokens, state = ByteTokenizer().encode_chat([{"role": "user", "content": text}]), 0
    for token in tokens:
        state = chain(state, token)
    said = ""
    for _ in range(max_tokens):
        token = letter(state, seed, 0, len(tokens))
        if token == 256:
            break
        said += chr(token)
        tokens.append(token)
        state = chain(state, token)
    return said


class Stream:
    """One answer as its client sees it, over all its connections."""

    def __init__(self, app: Any, rng: random.Random) -> None:
        self._app, self._rng = app, rng
        self.text = "".join(rng.choices("xyz ", k=rng.randint(1, 20)))
        self.seed, self.max_tokens = rng.getrandbits(60), rng.randint(1, 60)
        self.events: list[Any] = []

    @property
    def is_over(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] in ENDS

    async def run(self, cuts: int) -> None:
        rng = self._rng
        begins = [self._begin_on_socket, self._begin_over_sse]
        await rng.choice(begins)(rng.randrange(1, 20))
        for cut in range(cuts):
            if self.is_over:
                break
            await asyncio.sleep(rng.choice([0, rng.uniform(0, 0.5), rng.uniform(0, 20)]))
            resumes = [self._resume_on_socket, self._resume_over_sse]
            await rng.choice(resumes)(rng.randrange(1, 40) if cut < cuts - 1 else None)

    async def _read(self, next_event: Callable[[], Awaitable[Any]], count: int | None) -> None:
        """So many events, or to the end; now and then slowly."""
        while not self.is_over and count != 0:
            self.events.append(await next_event())
            count = None if count is None else count - 1
            if self._rng.random() < 0.1:
                await asyncio.sleep(self._rng.uniform(0, 0.3))

    async def _begin_on_socket(self, count: int) -> None:
        async with Socket(self._app) as socket:
            socket.send(type="response.create", **self._create())
            await self._read(socket.recv, count)

    async def _begin_over_sse(self, count: int) -> None:
        body = {**self._create(), "stream": True, "jitney": {"on_disconnect": "finish"}}
        async with Exchange(self._app, "POST", "/v1/responses", body) as exchange:
            assert exchange.status == 200
            await self._read(exchange.event, count)

    async def _resume_on_socket(self, count: int | None) -> None:
        async with Socket(self._app) as socket:
            socket.send(type="jitney:response.resume", response_id=self.id, starting_after=self.last)
            await self._read(socket.recv, count)

    async def _resume_over_sse(self, count: int | None) -> None:
        path = f"/v1/responses/{self.id}?stream=true&starting_after={self.last}"
        async with Exchange(self._app, "GET", path) as exchange:
            assert exchange.status == 200, await exchange.json()
            await self._read(exchange.event, count)

    @property
    def id(self) -> str:
        return str(self.events[0]["response"]["id"])

    @property
    def last(self) -> int:
        return int(self.events[-1]["sequence_number"])

    def _create(self) -> dict[str, Any]:
        return {"input": self.text, "seed": self.seed, "max_output_tokens": self.max_tokens}

    def check(self) -> None:
        events = self.events
        numbers = [event["sequence_number"] for event in events if "jitney" not in event]
        assert numbers == sorted(set(numbers)), "doubled, or out of order"
        assert [event["type"] in ENDS for event in events].count(True) == 1 and self.is_over
        said = "".join(event["delta"] for event in events if event["type"] in DELTAS)
        assert said == expected(self.text, self.seed, self.max_tokens), "missing, or doubled"
        assert said == events[-1]["response"]["output"][0]["content"][0]["text"]
        assert sum(event["type"] == "response.output_item.done" for event in events) == 1


@pytest.mark.parametrize("seed", range(4))
def test_streams_that_are_cut_and_resumed_lose_and_repeat_nothing(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """250 from each seed, 1,000 in all."""
    rng = random.Random(seed)

    async def body(engine: DynamicEngine, app: Any) -> None:
        streams = [Stream(app, rng) for _ in range(250)]

        async def run(stream: Stream) -> None:
            await asyncio.sleep(rng.uniform(0, 60))
            await stream.run(rng.randint(1, 5))

        async with asyncio.timeout(100_000):
            await asyncio.gather(*map(run, streams))
        for stream in streams:
            stream.check()

    simulate(monkeypatch, body, seed)


async def begin(app: Any, text: str = "hi", *, frames: int = 1, **fields: Any) -> list[Any]:
    """The first frames of an answer whose socket then closes."""
    async with Socket(app, **fields.pop("headers", {})) as socket:
        socket.send(type="response.create", input=text, seed=1, **fields)
        return [await socket.recv() for _ in range(frames)]


async def resumed(app: Any, transport: str, response_id: str, after: int = -1, **headers: str) -> list[Any]:
    """All frames behind `after`, or the one error."""
    if transport == "socket":
        async with Socket(app, **headers) as socket:
            socket.send(type="jitney:response.resume", response_id=response_id, starting_after=after)
            events = [await socket.recv()]
            while events[-1]["type"] not in (*ENDS, "error"):
                events.append(await socket.recv())
            return events
    path = f"/v1/responses/{response_id}?stream=true" + (f"&starting_after={after}" if after >= 0 else "")
    async with Exchange(app, "GET", path, **headers) as exchange:
        if exchange.status != 200:
            return [{**await exchange.json(), "status": exchange.status}]
        events = [await exchange.event()]
        while events[-1] is not None:
            events.append(await exchange.event())
        return events[:-1]


TRANSPORTS = ["socket", "sse"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_twice_at_once_and_again_afterwards(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        seen = await begin(app, frames=3)
        response_id = seen[0]["response"]["id"]
        both = await asyncio.gather(*(resumed(app, kind, response_id, 2) for kind in TRANSPORTS))
        again = await resumed(app, transport, response_id, 2)
        for events in (*both, again):
            assert "".join(e.get("delta", "") for e in events) == expected("hi", 1, CONTEXT)
            assert events[-1]["response"]["output"] == again[-1]["response"]["output"]
        (error,) = await resumed(app, transport, response_id, again[-1]["sequence_number"])
        assert (error["status"], error["error"]["param"]) == (400, "starting_after")
        (error,) = await resumed(app, transport, response_id, 10_000)
        assert error["error"]["param"] == "starting_after"

    simulate(monkeypatch, body)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_too_late(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        seen = await begin(app)
        response_id = seen[0]["response"]["id"]
        await asyncio.sleep(500)
        assert (await resumed(app, transport, response_id))[-1]["type"] in ENDS
        await asyncio.sleep(700)
        (error,) = await resumed(app, transport, response_id)
        assert (error["status"], error["error"]["code"]) == (409, "resume_window_expired")
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            status, answer = await ask(app, method, f"/v1/responses/{response_id}{path}")
            assert (status, answer["error"]["code"]) == (409, "resume_window_expired")
        (error,) = await resumed(app, transport, "resp_never")
        assert (error["status"], error["error"]["code"]) == (404, "response_not_found")
        assert not app.state.service.registry._entries

    simulate(monkeypatch, body, keep_finished_s=600)


def two_keys(folder: Path) -> Path:
    """A file with the keys a and b, whose secrets are their names doubled."""
    path = folder / "keys.toml"
    digests = {name: hashlib.sha256((name * 2).encode()).hexdigest() for name in "ab"}
    path.write_text("".join(f'[[key]]\nname = "{name}"\nsha256 = "{d}"\n' for name, d in digests.items()))
    return path


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_another_principal_sees_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, transport: str
) -> None:
    mine, theirs = {"authorization": "Bearer aa"}, {"authorization": "Bearer bb"}

    async def body(engine: DynamicEngine, app: Any) -> None:
        seen = await begin(app, headers=mine)
        response_id = seen[0]["response"]["id"]
        (error,) = await resumed(app, transport, response_id, **theirs)
        assert (error["status"], error["error"]["code"]) == (404, "response_not_found")
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            status, answer = await ask(app, method, f"/v1/responses/{response_id}{path}", **theirs)
            assert (status, answer["error"]["code"]) == (404, "response_not_found")
        async with Socket(app, **theirs) as socket:
            socket.send(type="response.cancel", response_id=response_id)
            assert (await socket.recv())["error"]["code"] == "response_not_found"
            socket.send(type="response.create", input="x", previous_response_id=response_id)
            assert (await socket.recv())["error"]["code"] == "previous_response_not_found"
        events = await resumed(app, transport, response_id, **mine)
        assert events[-1]["response"]["status"] == "completed", "still there, and not cancelled"
        engine.response(response_id).forget()  # type: ignore[union-attr]
        (error,) = await resumed(app, transport, response_id, **theirs)
        assert error["status"] == 404, "not even that it once was"

    simulate(monkeypatch, body, app_options={"keys_file": two_keys(tmp_path)})
