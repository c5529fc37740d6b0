"""Full collections wait for a quiet moment."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from jitney.streaming import garbage
from jitney.streaming.garbage import OLD, WORTH, Garbage, collected_when_quiet


class Collector:
    """`gc`, as far as a look at it goes."""

    def __init__(self) -> None:
        self.counts = (0, 0, 0)
        self.collections = 0

    def get_count(self) -> tuple[int, int, int]:
        return self.counts

    def collect(self) -> int:
        self.collections += 1
        self.counts = (0, 0, 0)
        return 0


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setattr(garbage, "gc", collector)
    return collector


def looks(collector: Collector, counts: tuple[int, int, int], quiet: list[bool]) -> list[bool]:
    collector.counts = counts
    moments = iter(quiet)
    found = Garbage(lambda: next(moments))
    return [found.look() for _ in quiet]


def test_it_collects_when_two_looks_in_a_row_find_it_quiet(collector: Collector) -> None:
    found = looks(collector, (0, 0, WORTH), [False, True, False, True, True, True])
    assert found == [False] * 4 + [True, False]
    assert collector.collections == 1


def test_it_does_not_collect_for_a_few_objects(collector: Collector) -> None:
    assert looks(collector, (699, 9, WORTH - 1), [True] * 5) == [False] * 5
    assert collector.collections == 0


async def test_it_looks_while_the_server_runs_and_not_after() -> None:
    seen, looked = 0, asyncio.Event()

    def is_quiet() -> bool:
        nonlocal seen
        seen += 1
        if seen == 3:
            looked.set()
        return False

    async with collected_when_quiet(is_quiet, look_s=0.0):
        await looked.wait()
    before = seen
    for _ in range(5):
        await asyncio.sleep(0)
    assert seen == before


async def test_full_collections_are_seldom_meanwhile() -> None:
    young, middle, old = gc.get_threshold()
    async with collected_when_quiet(lambda: True):
        assert gc.get_threshold() == (young, middle, OLD) != (young, middle, old)
    assert gc.get_threshold() == (young, middle, old)


async def test_the_threshold_is_put_back_after_a_failure_and_after_a_cancel() -> None:
    before = gc.get_threshold()
    with pytest.raises(OSError, match="no port"):
        async with collected_when_quiet(lambda: True):
            raise OSError("no port")
    assert gc.get_threshold() == before

    async def serve() -> None:
        async with collected_when_quiet(lambda: True):
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gc.get_threshold() == before


async def test_what_cannot_be_asked_is_told_at_the_end() -> None:
    asked = asyncio.Event()

    def is_quiet() -> bool:
        asked.set()
        raise ValueError("no stats")

    with pytest.raises(ValueError, match="no stats"):
        async with collected_when_quiet(is_quiet, look_s=0.0):
            await asked.wait()
