"""Full collections wait for a quiet moment."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from jitney.streaming import garbage
from jitney.streaming.garbage import MIDDLE, OLD, WORTH, YOUNG, Garbage, collected_when_quiet


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


@pytest.mark.parametrize("counts", [(0, WORTH, 0), (0, 0, 1)])
def test_it_collects_when_two_looks_in_a_row_find_it_quiet(
    collector: Collector, counts: tuple[int, int, int]
) -> None:
    assert looks(collector, counts, [False, True, False, True, True, True]) == [False] * 4 + [True, False]
    assert collector.collections == 1


def test_it_does_not_collect_for_a_few_objects(collector: Collector) -> None:
    assert looks(collector, (YOUNG - 1, WORTH - 1, 0), [True] * 5) == [False] * 5
    assert collector.collections == 0


def test_a_cycle_is_collected_by_a_quiet_look() -> None:
    class Knot:
        collected = 0

        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            Knot.collected += 1

    thresholds = gc.get_threshold()
    gc.disable()
    try:
        Knot()
        for _ in range(WORTH):
            gc.collect(0)
        assert Knot.collected == 1  # a young one dies young
        knot = Knot()
        gc.collect(1)
        del knot
        for _ in range(WORTH):
            gc.collect(0)
        assert Knot.collected == 1
        found = Garbage(lambda: True)
        assert [found.look(), found.look()] == [False, True]
        assert Knot.collected == 2
    finally:
        gc.enable()
    assert gc.get_threshold() == thresholds


async def test_thresholds_are_put_back() -> None:
    before = gc.get_threshold()
    async with collected_when_quiet(lambda: True):
        assert gc.get_threshold() == (YOUNG, MIDDLE, OLD)
    assert gc.get_threshold() == before
