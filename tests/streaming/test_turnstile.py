"""So many requests a turn of the loop: who waits, in which order, and that every door has it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from jitney.streaming.protocols.session import ResponsesSession
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


async def test_what_many_sockets_ask_at_once_is_taken_up_in_several_turns(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, plain = list[int](), ResponsesSession.receive

    def receive(session: ResponsesSession, frame: bytes | str) -> Any:
        taken.append(turns.number)
        return plain(session, frame)

    monkeypatch.setattr(ResponsesSession, "receive", receive)
    body = json.dumps({"type": "response.create", "input": "sky"})
    async with serving() as served:
        url = served.url.replace("http", "ws") + "/v1/responses"
        sockets = [await connect(url, proxy=None, close_timeout=0.1) for _ in range(5 * MOST)]
        with Turns() as turns:
            await asyncio.gather(*(socket.send(body) for socket in sockets))
            for socket in sockets:
                async with asyncio.timeout(60):
                    while json.loads(await socket.recv())["type"] != "response.completed":
                        pass
        for socket in sockets:
            await socket.close()
    assert len(taken) == len(sockets)
    assert max(Counter(taken).values()) <= MOST


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
