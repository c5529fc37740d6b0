"""The client against a real server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import aclosing
from typing import Any

import pytest

from jitney.runtime.errors import EngineClosed, InvalidField, ModelNotFound, QueueFull, RequestError
from jitney.runtime.testing import Reply
from jitney.streaming import Client, ConnectionLost


async def text_of(client: Client, prompt: Any, **fields: Any) -> str:
    return "".join([event.text async for event in client.stream(prompt, **fields)])


async def test_one_answer(serving: Any) -> None:
    async with serving() as served, Client(served.url) as client:
        events = [event async for event in client.stream("sky", temperature=0, seed=3)]
        assert "".join(event.text for event in events) == "Rayleigh scattering."
        assert [event.kind for event in events].count("done") == 1
        done = events[-1]
        assert (done.kind, done.finish_reason, done.error) == ("done", "stop_token", None)
        assert done.usage and done.usage.completion_tokens == 21 and done.usage.prompt_tokens == 5
        assert done.times and done.times.total_s and done.times.first_token_s
        assert {event.response_id for event in events} == {done.response_id}


async def test_more_answers_than_lanes(serving: Any) -> None:
    async with serving() as served, Client(served.url) as client:
        texts = await asyncio.gather(*(text_of(client, f"number {n}") for n in range(50)))
        assert texts == [f"number {n}" for n in range(50)]


async def test_leaving_cancels_and_gives_the_lane_back(serving: Any) -> None:
    async with serving() as served, Client(served.url) as client:
        for _ in range(40):
            async with aclosing(client.stream("slow")) as events:
                async for event in events:
                    assert event.text
                    break
        tasks = [asyncio.create_task(text_of(client, "slow")) for _ in range(20)]
        await served.until(lambda stats: stats.running == 16)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await served.until_idle()
        assert await text_of(client, "sky") == "Rayleigh scattering."


async def test_cancel_by_id_ends_the_stream(serving: Any) -> None:
    async with serving() as served, Client(served.url) as client:
        async for event in client.stream("slow"):
            await client.cancel(event.response_id)
        assert (event.kind, event.finish_reason) == ("done", "cancelled")


async def test_a_fault_is_in_the_last_event(serving: Any) -> None:
    async with serving() as served, Client(served.url) as client:
        events = [event async for event in client.stream("broken")]
        assert events[-1].finish_reason == "error" and "script failed" in (events[-1].error or "")


async def test_refusals_are_the_engines_errors(serving: Any) -> None:
    async with serving(config={"max_rows": 1, "max_queued": 1}) as served, Client(served.url) as client:
        with pytest.raises(RequestError, match="temperature") as bad:
            await text_of(client, "sky", temperature=3)
        assert bad.value.field == "temperature"
        with pytest.raises(ModelNotFound, match="served: 'scripted'"):
            await text_of(client, "sky", model="other")
        slow = [asyncio.create_task(text_of(client, "slow")) for _ in range(6)]
        with pytest.raises(QueueFull) as full:
            await asyncio.gather(*slow)
        assert full.value.retry_after_s >= 1
        await served.engine.drain(0)
        with pytest.raises(EngineClosed):
            await text_of(client, "sky")
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)


async def test_a_lost_connection_ends_every_stream(serving: Any) -> None:
    async with serving() as served, Client(served.url, max_outage_s=0) as client:
        leave = {"on_disconnect": "cancel"}
        tasks = [asyncio.create_task(text_of(client, "slow", jitney=leave)) for _ in range(20)]
        await served.until(lambda stats: stats.running == 16)
        client._socket.transport.abort()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionLost] * 20
        with pytest.raises(ConnectionLost):
            await text_of(client, "sky")
        await served.until_idle()


async def test_keys_and_models(serving: Any) -> None:
    async with serving(Reply(match="", text="yes"), api_key="secret", served_model_name="m") as served:
        async with Client(served.url + "/v1/", api_key="secret", model="m") as client:
            assert await text_of(client, [{"role": "user", "content": "hi"}]) == "yes"
        with pytest.raises(ConnectionLost, match="refused with 401"):
            async with Client(served.url):
                pass


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_urls_are_checked(url: str) -> None:
    with pytest.raises(InvalidField, match="url"):
        Client(url)


@pytest.mark.parametrize("module", ["client", "server", "serve", "protocols.session"])
def test_importing_loads_no_torch(module: str) -> None:
    program = f"import sys, jitney.streaming.{module}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
