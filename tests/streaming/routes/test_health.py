"""The health table: what each state shows at each address, at the moment of asking."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from jitney.runtime import DynamicEngine
from jitney.runtime.testing import Reply, Script, ScriptedBackend
from jitney.streaming import create_app

TABLE = {
    "starting": ("live", "starting"),
    "ready": ("live", "ready"),
    "busy": ("live", "ready"),
    "draining": ("live", "draining"),
    "stuck": ("live", "stalled"),
    "dead": ("dead", "dead"),
    "closed": ("live", "closed"),
}
"""State of the engine: what /live and /ready say. Everything but `live` and `ready` comes with 503."""

STALLED_S = 0.05
REPLIES = [Reply(match="die", fail_after=0, fault="worker"), Reply(text="x " * 1000, token_s=0.01)]


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://unknown.host")


async def until(client: httpx.AsyncClient, state: str) -> None:
    """Until the server tells what the table says."""
    live, ready = TABLE[state]
    async with asyncio.timeout(60):
        while True:
            answers = [await client.get(path) for path in ("/live", "/ready", "/health")]
            told = [(answer.json(), answer.status_code) for answer in answers]
            wanted = [({"status": s}, 200 if s in ("live", "ready") else 503) for s in (live, ready, ready)]
            if told == wanted:
                assert all("retry-after" in a.headers for a in answers[1:] if a.status_code == 503)
                return
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("state", TABLE)
async def test_the_table(state: str) -> None:
    hold = threading.Event()

    def sleep(seconds: float) -> None:
        if state == "stuck":
            hold.wait(100)

    backend = ScriptedBackend(Script(reply=REPLIES), sleep=sleep)
    if state == "starting":
        open_step = backend.open_step
        backend.open_step = lambda config: (hold.wait(100), open_step(config))[1]  # type: ignore[method-assign]
    engine = DynamicEngine(backend)
    async with client_of(create_app(engine, stalled_s=STALLED_S)) as client:
        await until(client, "closed")
        starting = asyncio.create_task(engine.start())
        try:
            if state == "starting":
                await until(client, "starting")
                hold.set()
            await starting
            await until(client, "ready")
            if state in ("busy", "stuck", "dead"):
                await engine.submit("die" if state == "dead" else "hello")
            elif state == "draining":
                response = await engine.submit("hello")
                assert not await engine.drain(0.01)
                await until(client, state)
                response.cancel()
            elif state == "closed":
                await engine.close()
            if state not in ("starting", "draining"):
                await until(client, state)
        finally:
            hold.set()
            await engine.close()


async def test_a_step_that_moves_again_is_ready_again() -> None:
    hold = threading.Event()
    backend = ScriptedBackend(Script(reply=REPLIES), sleep=lambda seconds: hold.wait(100) and None)
    async with DynamicEngine(backend) as engine, client_of(create_app(engine, stalled_s=STALLED_S)) as client:
        response = await engine.submit("hello")
        await until(client, "stuck")
        hold.set()
        await until(client, "ready")
        response.cancel()


async def test_health_tells_nothing_else() -> None:
    async with DynamicEngine(ScriptedBackend()) as engine:
        async with client_of(create_app(engine, api_key="k")) as client:
            for path in ("/live", "/ready", "/health"):
                answer = await client.get(path)
                assert answer.json().keys() == {"status"}
                assert "server" not in answer.headers
