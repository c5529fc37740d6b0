"""A scripted engine behind a real server on a loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import uvicorn
from pace import Pace

from jitney.runtime import DynamicEngine, EngineConfig
from jitney.runtime.testing import Reply, Script, ScriptedBackend
from jitney.streaming import create_app
from jitney.streaming.serve import serve

SLOW = Reply(match="slow", text="tick " * 1600, token_s=0.005)
REPLIES = [
    Reply(match="sky", text="Rayleigh scattering."),
    Reply(match="broken", text="half an answer", fail_after=6),
    SLOW,
]


@asynccontextmanager
async def scripted_engine(
    *replies: Reply, pace: Pace, reasons: bool = False, **config: Any
) -> AsyncIterator[DynamicEngine]:
    script = Script(reply=[*replies, *REPLIES], context_length=8192, reasons=reasons)
    backend = ScriptedBackend(script, clock=pace.clock, sleep=pace.sleep)
    async with DynamicEngine(backend, EngineConfig(**config)) as engine:
        yield engine


@asynccontextmanager
async def server(app: Any, **options: Any) -> AsyncIterator[str]:
    """The URL of `app`, while it is served."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(serve(app, port=0, on_ready=ready.set_result, **options))
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield ready.result()
    finally:
        running.cancel()
        await asyncio.wait({running})


class Serving:
    """What `serving` gives: the engine, the pace of its script, the app and its URL."""

    def __init__(self, engine: DynamicEngine, pace: Pace, app: Any, url: str) -> None:
        self.engine = engine
        self.pace = pace
        self.app = app
        self.url = url

    async def until(self, condition: Callable[[Any], bool]) -> None:
        """Until the engine's stats satisfy `condition`."""
        with anyio.move_on_after(60):
            while True:
                if condition(self.engine.stats()):
                    return
                await asyncio.sleep(0.002)
        assert condition(self.engine.stats()), self.engine.stats()

    async def until_idle(self) -> None:
        await self.until(lambda stats: stats.running == stats.waiting == stats.kv_pages_used == 0)


@pytest.fixture
def serving() -> Any:
    """`async with serving(replies, api_key=..., config={...}) as served:`"""

    @asynccontextmanager
    async def start(*replies: Reply, config: Any = None, **options: Any) -> AsyncIterator[Serving]:
        pace = Pace()
        async with scripted_engine(*replies, pace=pace, **(config or {})) as engine:
            app = create_app(engine, **options)
            async with server(app) as url:
                yield Serving(engine, pace, app, url)

    return start


@pytest.fixture
def serve_app() -> Any:
    """`async with serve_app(app) as url:` runs any app as a host program would, on uvicorn alone."""

    @asynccontextmanager
    async def start(app: Any) -> AsyncIterator[str]:
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="websockets-sansio")
        host = uvicorn.Server(config)
        running = asyncio.create_task(host.serve())
        while True:
            if host.started:
                break
            await asyncio.sleep(0.002)
        try:
            yield f"http://127.0.0.1:{host.servers[0].sockets[0].getsockname()[1]}"
        finally:
            host.should_exit = True
            await running

    return start
