"""A client whose network fails: every answer arrives whole, once; what cannot be had again says so."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

import pytest
from cuttable import Wire, cuttable

from jitney.runtime.events import Event
from jitney.runtime.testing import Reply
from jitney.streaming import Client, ConnectionLost, connect

TEXT = "".join(f"{number} " for number in range(300))
LONG = Reply(match="long", text=TEXT, token_s=0.001)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.streaming.client.FIRST_PAUSE_S", 0.005)


async def read(client: Client, prompt: str, seen: list[Event] | None = None, **fields: Any) -> list[Event]:
    """The whole answer; what has come of it so far is in `seen`."""
    events = [] if seen is None else seen
    async for event in client.stream(prompt, **fields):
        events.append(event)
    return events


def whole(events: list[Event]) -> str:
    numbers = [event.seq for event in events]
    assert numbers == sorted(set(numbers)) and [event.kind for event in events].count("done") == 1
    return "".join(event.text for event in events)


async def test_cut_at_random_places_nothing_is_missing_or_doubled(serving: Any) -> None:
    rng = random.Random(11)
    async with serving(LONG) as served, cuttable(served.url) as wire, connect(wire.url) as client:
        reading = [asyncio.create_task(read(client, "long")) for _ in range(24)]
        for _ in range(25):
            await asyncio.sleep(rng.uniform(0.0, 0.12))
            wire.cut()
        texts = [whole(events) for events in await asyncio.gather(*reading)]
        assert texts == [TEXT] * 24
        assert wire.num_connections > 5
        assert (await read(client, "sky"))[-1].finish_reason == "stop_token"


async def test_what_is_asked_during_an_outage_waits_for_its_end(serving: Any) -> None:
    async with serving(LONG) as served, cuttable(served.url) as wire, connect(wire.url) as client:
        wire.is_down = True
        wire.cut()
        reading = asyncio.create_task(read(client, "long"))
        await until(lambda: wire.num_connections > 3)
        wire.is_down = False
        assert whole(await reading) == TEXT


async def test_a_question_that_never_arrived_is_asked_again(serving: Any) -> None:
    async with serving() as served, cuttable(served.url) as wire, connect(wire.url) as client:
        wire.is_deaf = True
        reading = asyncio.create_task(read(client, "sky"))
        await asyncio.sleep(0.02)
        wire.is_deaf = False
        wire.cut()
        assert whole(await reading) == "Rayleigh scattering."
        assert served.engine.stats().finished == {"stop_token": 1}


async def test_a_stop_during_an_outage_is_said_afterwards(serving: Any) -> None:
    async with serving() as served, cuttable(served.url) as wire, connect(wire.url) as client:
        async with aclosing(client.stream("slow")) as events:
            async for _ in events:
                wire.is_down = True
                wire.cut()
                await until(lambda: not client._is_up)
                break
        assert served.engine.stats().running == 1
        wire.is_down = False
        await served.until_idle()
        assert served.engine.stats().finished == {"cancelled": 1}
        assert whole(await read(client, "sky")) == "Rayleigh scattering."


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


async def test_an_outage_that_lasts_ends_the_answers(serving: Any) -> None:
    async with serving() as served, cuttable(served.url) as wire:
        async with connect(wire.url, max_outage_s=0.1) as client:
            reading = [asyncio.create_task(read(client, "slow")) for _ in range(3)]
            await served.until(lambda stats: stats.running == 3)
            wire.is_down = True
            wire.cut()
            results = await asyncio.gather(*reading, return_exceptions=True)
            assert [type(result) for result in results] == [ConnectionLost] * 3
            with pytest.raises(ConnectionLost, match="connection closed"):
                await read(client, "sky")
            with pytest.raises(ConnectionLost):
                await client.cancel("resp_1")


async def test_another_server_does_not_have_the_answer(serving: Any) -> None:
    """As after a restart: it says so at once, and what is new is served."""
    async with serving(LONG) as served, serving(LONG) as other, cuttable(served.url) as wire:
        async with connect(wire.url) as client:
            seen: list[Event] = []
            reading = asyncio.create_task(read(client, "slow", seen))
            await until(lambda: seen)
            redirect(wire, other.url)
            wire.cut()
            with pytest.raises(ConnectionLost, match="no response"):
                await reading
            assert whole(await read(client, "long")) == TEXT


def redirect(wire: Wire, url: str) -> None:
    wire._port = int(url.rpartition(":")[2])


async def test_a_key_that_is_revoked_is_not_tried_again(serving: Any) -> None:
    async with serving(api_key="secret") as served, cuttable(served.url) as wire:
        async with connect(wire.url, api_key="secret") as client:
            client._headers["authorization"] = "Bearer wrong"
            reading = asyncio.create_task(read(client, "slow"))
            await served.until(lambda stats: stats.running == 1)
            wire.cut()
            with pytest.raises(ConnectionLost, match="refused with 401"):
                await reading


async def test_a_server_that_drains_is_followed_to_its_end(serving: Any) -> None:
    async with serving(LONG) as served, connect(served.url, max_outage_s=0) as client:
        reading = asyncio.create_task(read(client, "long"))
        await served.until(lambda stats: stats.running == 1)
        draining = asyncio.create_task(served.app.state.service.drain(100))
        assert whole(await reading) == TEXT
        assert await draining


async def test_closing_the_client_ends_what_is_open(serving: Any) -> None:
    async with serving() as served:
        async with connect(served.url) as client:
            reading = asyncio.create_task(read(client, "slow", jitney={"on_disconnect": "cancel"}))
            await served.until(lambda stats: stats.running == 1)
        with pytest.raises(ConnectionLost, match="closed"):
            await reading
        await served.until_idle()
