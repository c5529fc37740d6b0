"""Threads that tokenise: several at once, and at the end all have ended, or are known not to have."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from jitney.runtime.engines import tokenizing
from jitney.runtime.engines.tokenizing import Tokenizing


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 2), (16, 4), (128, 4)])
def test_there_are_as_many_as_leave_cores_to_others(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(tokenizing, "num_cores", lambda: cores)
    with Tokenizing() as made:
        assert made._num_threads == threads


async def test_they_work_at_once() -> None:
    met = threading.Barrier(2)
    threads = Tokenizing(2)
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(threads, met.wait) for _ in range(2)))
    await threads.end(60)


async def ending_beside_a_busy_thread() -> tuple[Tokenizing, asyncio.Future[None], threading.Event]:
    """Threads of which one is busy until the event is set, and their end, which has begun."""
    threads, hold = Tokenizing(2), threading.Event()
    asyncio.get_running_loop().run_in_executor(threads, hold.wait)
    ending = asyncio.ensure_future(threads.end(60))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not ending.done()
    return threads, ending, hold


async def test_the_end_waits_for_every_thread_and_not_on_the_loop() -> None:
    _, ending, hold = await ending_beside_a_busy_thread()
    hold.set()
    await ending


async def test_a_thread_that_does_not_return_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    threads, loop = Tokenizing(2), asyncio.get_running_loop()
    hold = threading.Event()
    held = loop.run_in_executor(threads, hold.wait)
    with caplog.at_level(logging.ERROR, "jitney"):
        await threads.end(0.0)
    assert "left behind" in caplog.text and not held.done()
    hold.set()
    await held


async def test_who_gives_the_end_up_leaves_no_thread_waiting() -> None:
    threads, ending, hold = await ending_beside_a_busy_thread()
    ending.cancel()
    await asyncio.wait({ending})
    hold.set()
    threads.shutdown(wait=True)
    assert ending.cancelled()


async def test_without_a_thread_more_the_end_waits_for_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, loop = Tokenizing(2), asyncio.get_running_loop()
    await loop.run_in_executor(threads, int)

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    await threads.end(60)
