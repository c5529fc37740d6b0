"""So many requests a turn of the loop: who waits, in which order, and that every door has it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from jitney.streaming.entry import Entry
from jitney.streaming.protocols.session import ResponsesSession
from jitney.streaming.registry import Registry
from jitney.streaming.turnstile import MOST, Turnstile


class Turns:
    """Counts the loop's turns while it is entered."""

    number = 0

    def __enter__(self) -> Turns:
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._next.cancel()

    def _tick(self) -> None:
        self.number += 1
        self._next = self._loop.call_soon(self._tick)


TURNS = Turns()


@pytest.mark.parametrize("many", [1, 3, 4, 20])
async def test_three_a_turn_in_the_order_of_coming(many: int) -> None:
    turnstile, passed = Turnstile(3), list[tuple[int, int]]()

    async def come(number: int) -> None:
        await turnstile.passed()
        passed.append((turns.number, number))

    with Turns() as turns:
        await asyncio.gather(*map(come, range(many)))
    assert [number for _, number in passed] == list(range(many))
    a_turn = Counter(turn for turn, _ in passed)
    assert max(a_turn.values()) == min(3, many) and len(a_turn) == -(-many // 3)


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_overtakes_whenever_they_come(seed: int) -> None:
    draw, turnstile = random.Random(seed), Turnstile(3)
    came, passed = list[int](), list[tuple[int, int]]()

    async def come(number: int) -> None:
        for _ in range(draw.choice((0, 0, 1, 2, 5))):
            await asyncio.sleep(0)
        came.append(number)
        await turnstile.passed()
        passed.append((turns.number, number))

    with Turns() as turns:
        await asyncio.gather(*map(come, range(60)))
    assert [number for _, number in passed] == came
    assert max(Counter(turn for turn, _ in passed).values()) <= 2 * 3


async def test_another_loop_neither_waits_nor_makes_anybody_wait() -> None:
    turnstile = Turnstile(1)
    tasks = [asyncio.create_task(turnstile.passed()) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.to_thread(lambda: asyncio.run(turnstile.passed()))
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)


async def test_whoever_comes_alone_does_not_wait() -> None:
    turnstile = Turnstile(1)
    with Turns() as turns:
        for _ in range(5):
            before = turns.number
            await turnstile.passed()
            assert turns.number == before
            await asyncio.sleep(0)
            await asyncio.sleep(0)


async def test_nobody_waits_for_who_has_left() -> None:
    turnstile, passed = Turnstile(1), list[int]()

    async def come(number: int) -> None:
        await turnstile.passed()
        passed.append(number)

    tasks = [asyncio.create_task(come(number)) for number in range(5)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert passed == [0, 3, 4]


def test_a_loop_that_has_ended_leaves_nobody_waiting_on_the_next() -> None:
    turnstile, passed = Turnstile(1), list[int]()

    async def come(number: int) -> None:
        await turnstile.passed()
        passed.append(number)

    async def leave_one_waiting() -> None:
        for number in range(2):
            asyncio.ensure_future(come(number))
        await asyncio.sleep(0)

    async def come_again() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*map(come, range(2, 5)))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_one_waiting())
    loop.close()
    assert passed == [0]
    asyncio.run(come_again())
    assert passed == [0, 2, 3, 4]


async def test_at_rest_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    turnstile, loop = Turnstile(2), asyncio.get_running_loop()
    await asyncio.gather(*(turnstile.passed() for _ in range(5)))
    for _ in range(3):
        await asyncio.sleep(0)
    come_back, plain = list[Any](), loop.call_soon

    def noted(callback: Any, *arguments: Any, **options: Any) -> asyncio.Handle:
        come_back.append(callback)
        return plain(callback, *arguments, **options)

    monkeypatch.setattr(loop, "call_soon", noted)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not [callback for callback in come_back if getattr(callback, "__self__", None) is turnstile]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The turn of the loop in which each frame was taken up."""
    found, plain = list[int](), ResponsesSession.receive

    def receive(session: ResponsesSession, frame: bytes | str) -> Any:
        found.append(TURNS.number)
        return plain(session, frame)

    monkeypatch.setattr(ResponsesSession, "receive", receive)
    return found


@asynccontextmanager
async def crowd(served: Any, prompt: str) -> AsyncIterator[list[ClientConnection]]:
    """Sockets that ask at once; the first of them has been heard."""
    url = served.url.replace("http", "ws") + "/v1/responses"
    body = json.dumps({"type": "response.create", "input": prompt})
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(connect(url, proxy=None, close_timeout=0.1))
            for _ in range(5 * MOST)
        ]
        await asyncio.gather(*(socket.send(body) for socket in sockets))
        yield sockets


async def last_frame(socket: ClientConnection, *ends: str) -> str:
    async with asyncio.timeout(60):
        while (kind := json.loads(await socket.recv())["type"]) not in ends:
            pass
    return str(kind)


async def grown(found: list[Any], count: int) -> None:
    async with asyncio.timeout(60):
        while True:
            if len(found) >= count:
                return
            await asyncio.sleep(0)


async def test_what_many_sockets_ask_at_once_is_taken_up_in_several_turns(
    serving: Any, taken: list[int]
) -> None:
    async with serving() as served:
        with TURNS:
            async with crowd(served, "sky") as sockets:
                for socket in sockets:
                    await last_frame(socket, "response.completed")
    assert len(taken) == 5 * MOST
    assert max(Counter(taken).values()) <= 2 * MOST


async def test_a_drain_lets_in_who_came_before(serving: Any, taken: list[int]) -> None:
    async with serving() as served, crowd(served, "sky") as sockets:
        await grown(taken, 1)
        assert len(taken) < len(sockets)
        assert await served.app.state.service.drain(60)
        assert len(taken) == len(sockets)
        for socket in sockets:
            await last_frame(socket, "response.completed")


async def test_a_stop_leaves_nothing_behind_that_comes_in_later(serving: Any, taken: list[int]) -> None:
    async with serving() as served, crowd(served, "slow") as sockets:
        await grown(taken, 1)
        assert len(taken) < len(sockets)
        await served.app.state.service.stop()
        for socket in sockets:
            await last_frame(socket, "response.incomplete", "response.cancelled", "error")
        await served.until_idle()
        assert len(taken) == len(sockets)


async def test_a_request_that_was_read_is_taken_up_though_its_client_has_left(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, plain = list[Entry](), Registry.open

    def open_(registry: Registry, entry: Entry) -> Entry:
        opened.append(entry)
        return plain(registry, entry)

    monkeypatch.setattr(Registry, "open", open_)
    body = json.dumps({"input": "sky", "stream": True, "jitney": {"on_disconnect": "finish"}})
    head = f"POST /v1/responses HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
    async with serving() as served:
        port = int(served.url.rpartition(":")[2])
        clients = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(5 * MOST)]
        for client in clients:
            client.write((head + body).encode())
        await grown(opened, 1)
        assert len(opened) < len(clients)
        for client in clients:
            client.close()
        await grown(opened, len(clients))
        await served.until_idle()


async def test_every_door_has_it(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = 0

    async def noted(_: Turnstile) -> None:
        nonlocal passed
        passed += 1

    monkeypatch.setattr(Turnstile, "passed", noted)
    async with serving() as served, httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        socket_url = served.url.replace("http", "ws")
        answer = await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "sky"}]}
        )
        assert answer.status_code == 200 and passed == 1
        for path in ("/v1/responses", "/v1/chat/ws"):
            before = passed
            async with connect(socket_url + path, proxy=None, close_timeout=0.1) as socket:
                await socket.send("{}")
                with suppress(ConnectionClosed):
                    await socket.recv()
            assert passed == before + 1
