"""Full collections wait for a quiet moment, and young ones are few."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets import Origin
from websockets.asyncio.client import connect

from jitney.streaming import garbage
from jitney.streaming.garbage import MOST, WORTH, YOUNG, Garbage, collected_when_quiet


class Collector:
    """`gc`, as far as a look at it goes."""

    def __init__(self) -> None:
        self.counts = (0, 0, 0)
        self.collections = 0

    def get_count(self) -> tuple[int, int, int]:
        return self.counts

    def collect(self) -> int:
        self.collections += 1
        self.counts = (0, 0, 0)
        return 0


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setattr(garbage, "gc", collector)
    return collector


def looks(collector: Collector, counts: tuple[int, int, int], quiet: list[bool]) -> list[bool]:
    collector.counts = counts
    moments = iter(quiet)
    found = Garbage(lambda: next(moments))
    return [found.look() for _ in quiet]


def test_it_collects_when_two_looks_in_a_row_find_it_quiet(collector: Collector) -> None:
    found = looks(collector, (0, WORTH, 0), [False, True, False, True, True, True])
    assert found == [False] * 4 + [True, False]
    assert collector.collections == 1


def test_it_does_not_collect_for_a_few_objects(collector: Collector) -> None:
    assert looks(collector, (YOUNG - 1, WORTH - 1, 9), [True] * 5) == [False] * 5
    assert collector.collections == 0


async def test_it_looks_while_the_server_runs_and_not_after() -> None:
    seen, looked = 0, asyncio.Event()

    def is_quiet() -> bool:
        nonlocal seen
        seen += 1
        if seen == 3:
            looked.set()
        return False

    async with collected_when_quiet(is_quiet, look_s=0.0):
        await looked.wait()
    before = seen
    for _ in range(5):
        await asyncio.sleep(0)
    assert seen == before


async def test_collections_are_seldom_meanwhile() -> None:
    young, middle, old = gc.get_threshold()
    async with collected_when_quiet(lambda: True):
        assert gc.get_threshold() == (YOUNG, MOST, old) != (young, middle, old)
    assert gc.get_threshold() == (young, middle, old)


async def test_the_threshold_is_put_back_after_a_failure_and_after_a_cancel() -> None:
    before = gc.get_threshold()
    with pytest.raises(OSError, match="no port"):
        async with collected_when_quiet(lambda: True):
            raise OSError("no port")
    assert gc.get_threshold() == before

    async def serve() -> None:
        async with collected_when_quiet(lambda: True):
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gc.get_threshold() == before


async def test_what_cannot_be_asked_is_told_at_the_end() -> None:
    asked = asyncio.Event()

    def is_quiet() -> bool:
        asked.set()
        raise ValueError("no stats")

    with pytest.raises(ValueError, match="no stats"):
        async with collected_when_quiet(is_quiet, look_s=0.0):
            await asked.wait()


def responses_frame() -> dict[str, Any]:
    return {"type": "response.create", "input": "sky"}


def chat_frame() -> dict[str, Any]:
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "sky"}]}
    return {"type": "send", "requestId": "r", "id": "c", "trigger": "submit-message", "messages": [message]}


async def by_socket(url: str, path: str, frame: dict[str, Any]) -> None:
    async with connect(url.replace("http", "ws") + path, proxy=None, origin=Origin(url)) as socket:
        await socket.send(json.dumps(frame))
        while json.loads(await socket.recv())["type"] not in ("response.completed", "end"):
            pass


async def by_events(url: str, path: str, body: dict[str, Any]) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(path, json=body)
        assert "[DONE]" in answer.text


async def refused_body(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/completions", json={"prompt": "sky", "temperature": "warm"})
        assert answer.status_code == 400


async def refused_frame(url: str) -> None:
    async with connect(url.replace("http", "ws") + "/v1/responses", proxy=None) as socket:
        await socket.send(json.dumps(responses_frame() | {"temperature": "warm"}))
        assert json.loads(await socket.recv())["type"] == "error"


WAYS: dict[str, Callable[[str], Awaitable[None]]] = {
    "responses": lambda url: by_socket(url, "/v1/responses", responses_frame()),
    "chat page": lambda url: by_socket(url, "/v1/chat/ws", chat_frame()),
    "events": lambda url: by_events(
        url, "/v1/chat/completions", {"messages": [{"role": "user", "content": "sky"}], "stream": True}
    ),
    "a refused body": refused_body,
    "a refused frame": refused_frame,
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_that_is_over_leaves_nothing_to_collect(serving: Any, way: str) -> None:
    """What is found is asyncio's own, and the client's."""
    async with serving() as served:
        await WAYS[way](served.url)
        await served.until_idle()
        gc.collect()
        gc.disable()
        try:
            await WAYS[way](served.url)
            await served.until_idle()
            for _ in range(20):
                await asyncio.sleep(0.005)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = Counter(f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not {name for name in left if name.startswith(("jitney", "starlette", "uvicorn", "httptools"))}, (
        left
    )
