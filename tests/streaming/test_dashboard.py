"""The dashboard's feed: what it counts, what it shows of whom, and what one second of it means."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from jitney.runtime.layout import CACHED, FREE, USED, Layout, Seated
from jitney.runtime.observer import Gain
from jitney.streaming.dashboard import CACHED_PAGE, FREE_PAGE, LEAVING_PAGE, cells_of
from jitney.streaming.pulse import KEEP_S, Percentiles, Pulse


def headers(key: str, user: str = "") -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} | ({"jitney-user": user} if user else {})


async def snapshots(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in reply.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def seen(http: httpx.AsyncClient, key: dict[str, str], num_seats: int) -> dict[str, Any]:
    """The first snapshot in which so many seats are taken."""
    async with asyncio.timeout(60), http.stream("GET", "/v1/dashboard", headers=key) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        async for snapshot in snapshots(reply):
            if len(snapshot["seats"]) == num_seats:
                return snapshot
    raise AssertionError("the feed ended")


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    tables = [
        f'[[key]]\nname = "{name}"\ntrusted = true\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
        for name in ("alpha", "beta")
    ]
    path.write_text("\n".join(tables))
    return path


async def test_the_operator_sees_all_and_a_key_its_own(
    serving: Any, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jitney.streaming.routes.dashboard.PERIOD_S", 0.01)
    async with (
        serving(api_key="own", keys_file=keys_file) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60) as http,
    ):
        body = {"prompt": "slow", "max_tokens": 1500, "stream": True}
        served.pace.hold(0.1)
        owners = [headers("alpha"), headers("beta"), headers("beta", "bob")]
        asking = [asyncio.create_task(drain(http, body, owner)) for owner in owners]
        everything = await seen(http, headers("own"), 3)
        assert all(seat["limit"] == 1504 and seat["prompt_len"] == 4 for seat in everything["seats"])
        assert sorted(seat["key"] for seat in everything["seats"]) == ["alpha", "beta", "beta"]
        assert everything["running"] == 3 and everything["model"] == "scripted"
        assert everything["max_rows"] == 32 and everything["state"] == "ready"
        for owner in owners:
            seats = (await seen(http, owner, 3))["seats"]
            assert sorted(len(seat) for seat in seats) == [1, 1, 7], "its own, and two taken seats"
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        await served.until_idle()
        assert (await http.get("/v1/dashboard")).status_code == 401


async def drain(http: httpx.AsyncClient, body: dict[str, Any], owner: dict[str, str]) -> None:
    async with http.stream("POST", "/v1/completions", json=body, headers=owner) as reply:
        async for _ in reply.aiter_bytes():
            pass


async def test_its_head_ends(serving: Any) -> None:
    async with serving() as served, httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        reply = await http.head("/v1/dashboard")
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")


async def test_the_past_comes_first_and_the_end_is_told(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jitney.streaming.routes.dashboard.PERIOD_S", 0.01)
    async with serving() as served, httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        await http.post("/v1/completions", json={"prompt": "sky"})
        heard = []
        async with http.stream("GET", "/v1/dashboard") as reply:
            async for snapshot in snapshots(reply):
                heard.append(snapshot)
                if len(heard) == 2:
                    await served.engine.drain()
        assert len(heard[0]["seconds"]) == KEEP_S and len(heard[1]["seconds"]) == 3
        times = [second["at"] for second in heard[0]["seconds"]]
        assert times == list(range(times[0], times[0] + KEEP_S))
        assert heard[0]["finished"] == {"length": 1} and heard[-1]["state"] == "draining"


def test_a_cell_shows_what_is_used_most_of_all() -> None:
    row = Seated("r", 0, "", slot=5, prompt_len=1, computed=1, num_tokens=1, limit=9, pages=(3, 4))
    states = bytes([USED, FREE, CACHED, USED, USED, USED, FREE])
    layout = Layout(8, 16, (row,), states)
    assert cells_of(layout, 1) == [FREE_PAGE, CACHED_PAGE, 5, 5, LEAVING_PAGE, FREE_PAGE]
    assert cells_of(layout, 2) == [CACHED_PAGE, 5, LEAVING_PAGE]
    assert cells_of(layout, 4) == [5, LEAVING_PAGE]


def answer(first_token_s: float) -> Any:
    return SimpleNamespace(first_token_s=first_token_s)


def test_a_second_of_the_pulse() -> None:
    now = [100.0]
    pulse = Pulse(lambda: now[0])
    one, other = answer(1.0), answer(0.5)
    for at, gain in (
        (100.0, Gain(one, 1, [], is_first=True)),
        (100.5, Gain(one, 4, [0.125, 0.25], is_first=False)),
        (100.5, Gain(other, 1, [], is_first=True)),
        (101.0, Gain(one, 1, [0.75], is_first=False)),
    ):
        now[0] = at
        pulse.advanced([gain])
    pulse.ended(one)
    now[0] = 102.5
    quiet, first, second = pulse.seconds(3)
    assert quiet.tokens == 0 and quiet.gap_s is quiet.first_token_s is None
    assert first.tokens == 6 and first.gap_s == Percentiles(0.125, 0.25, 0.25)
    assert first.first_token_s == Percentiles(0.5, 1.0, 1.0)
    assert second.tokens == 1 and second.gap_s == Percentiles(0.75, 0.75, 0.75)
    assert pulse.recent(2).tokens == 4 and pulse.recent(2).gap_s == Percentiles(0.25, 0.75, 0.75)
    now[0] += 2 * KEEP_S
    pulse.advanced([Gain(one, 1, [0.75], is_first=False)])
    assert len(pulse._buckets) == 1, "what is old is forgotten"
