"""The whole server in simulated time: an engine, the app, and clients without a wire, all from one seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from simulated_engine import CONTEXT, SimulatedBackend, check_empty
from simulated_loop import SimulatedLoop, run_simulated, simulated_worker

from jitney.runtime import DynamicEngine, EngineConfig
from jitney.runtime.batch import Capacity
from jitney.runtime.engines import dynamic
from jitney.streaming import create_app


def simulate(
    monkeypatch: pytest.MonkeyPatch,
    body: Callable[[DynamicEngine, Any], Awaitable[None]],
    seed: int = 0,
    *,
    app_options: dict[str, Any] | None = None,
    max_rows: int = 32,
    **config: Any,
) -> None:
    """Run `body(engine, app)`; afterwards every seat and page is free."""
    rng = random.Random(seed)
    capacity = Capacity(num_pages=12 * CONTEXT // 4, page_size=4, max_rows=max_rows, depth=rng.choice([0, 2]))
    settings = EngineConfig(
        **{
            "max_queued": 10_000,
            "step_timeout_s": 1e6,
            "tune_process": False,
            "keep_finished_s": 1e5,
            **config,
        }
    )
    monkeypatch.setattr(dynamic, "Worker", simulated_worker(rng, lambda steps: None))

    async def main(loop: SimulatedLoop) -> None:
        async with DynamicEngine(SimulatedBackend(rng, capacity), settings, clock=loop.time) as engine:
            app = create_app(engine, **(app_options or {}))
            await body(engine, app)
            await engine.drain()
            await check_empty(engine)

    run_simulated(main)


async def until(condition: Callable[[], bool]) -> None:
    """Look every hundredth of a simulated second."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)
