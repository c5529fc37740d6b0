"""A simulated run that cannot end is ended: by whoever interrupts it, or when no time passes any more."""

from __future__ import annotations

import asyncio

import pytest
from simulated_loop import SimulatedLoop, run_simulated


def test_an_interrupt_in_a_callback_ends_the_run() -> None:
    """pytest's time limit is one: it is raised wherever the loop happens to be."""

    async def main(loop: SimulatedLoop) -> None:
        loop.call_later(1, pytest.fail, "time is up")
        await asyncio.sleep(1e9)

    with pytest.raises(pytest.fail.Exception, match="time is up"):
        run_simulated(main)


def test_a_run_in_which_no_time_passes_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulated_loop.MAX_TURNS", 1000)

    async def main(loop: SimulatedLoop) -> None:
        while loop.time() < 2000:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="no time passes: a hang"):
        run_simulated(main)
