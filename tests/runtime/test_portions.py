"""The worker's news in portions: in order, one a turn, one wake-up a report; what waits is taken in as one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from spelled import spelled

from jitney.runtime.batch import Capacity
from jitney.runtime.messages import Advance, Opened, Output, Report, SchedulerStats, Stopped
from jitney.runtime.portions import MAX_OUTPUTS, Portions


def report(step: int, count: int) -> Report:
    return Report([Output(f"{step}-{row}", 0) for row in range(count)], SchedulerStats(steps=step))


def timeless(take: Callable[[Any], None]) -> Portions:
    """Nothing takes time: a portion a turn."""
    return Portions(asyncio.get_running_loop(), take, lambda: 0.0)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_report_is_taken_in_a_portion_a_turn_and_nothing_overtakes() -> None:
    taken: list[Any] = []
    portions = timeless(taken.append)
    news = [Opened(Capacity(1, 1, 1)), report(1, 3 * MAX_OUTPUTS + 1), report(2, 2), Stopped(None)]
    for each in news:
        assert portions.post(each)
    await turns(1)
    assert len(taken) <= 2
    await turns(10)
    assert [len(each.outputs) for each in taken[1:-1]] == [MAX_OUTPUTS] * 3 + [3]
    assert taken[0] == news[0] and taken[-1] == news[-1]
    ids = [output.id for each in taken[1:-1] for output in each.outputs]
    assert ids == [output.id for each in (news[1], news[2]) for output in each.outputs]  # type: ignore[union-attr]
    assert all(each.stats.steps == 2 for each in taken[1:-1])


@pytest.mark.parametrize("count", [0, 1, MAX_OUTPUTS])
async def test_a_small_report_is_taken_at_once_and_whole(count: int) -> None:
    taken: list[Any] = []
    portions = timeless(taken.append)
    portions.post(report(1, count))
    await turns(1)
    assert taken == [report(1, count)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("others_ms", "portions_each"), [(0, 1), (3, 1), (5, 2), (6, 3), (10, 4), (100, 4)])
@pytest.mark.parametrize("is_behind", [False, True])
async def test_a_turn_takes_more_portions_after_a_long_one(
    others_ms: int, portions_each: int, is_behind: bool
) -> None:
    """Each portion takes 1 ms. Where a newer report waits already, the rest is taken in at once."""
    clock, loop, taken = Clock(), asyncio.get_running_loop(), 0
    turns_of: list[int] = []

    def take(news: Any) -> None:
        nonlocal taken
        taken += 1
        clock.now += 0.001

    portions = Portions(loop, take, clock)
    portions.post(report(1, 16 * MAX_OUTPUTS))
    await turns(1)
    assert taken == 1
    if is_behind:
        portions.post(report(2, 1))
    while taken < 16:
        before = taken
        clock.now += others_ms / 1000
        await turns(1)
        turns_of.append(taken - before)
    assert sum(turns_of) == 15 and set(turns_of[:-1]) <= {portions_each}
    assert not is_behind or turns_of == [15]


async def test_what_a_portion_sets_in_motion_does_not_make_the_next_turn_longer() -> None:
    """Taken in within 0.5 ms each, and sent within 1 ms each: else a turn would be twice the last."""
    clock, loop = Clock(), asyncio.get_running_loop()
    turns_of, taken = [0], 0

    def send() -> None:
        clock.now += 0.001
        if turns_of[-1]:
            turns_of.append(0)

    def take(news: Any) -> None:
        nonlocal taken
        taken += 1
        turns_of[-1] += 1
        clock.now += 0.0005
        loop.call_soon(send)

    Portions(loop, take, clock).post(report(1, 16 * MAX_OUTPUTS))
    while taken < 16:
        await turns(1)
    assert turns_of == [1] * 16


async def test_what_raises_in_the_middle_of_a_turn_leaves_the_rest_for_the_next() -> None:
    clock, taken = Clock(), []
    told: list[Any] = []

    def take(news: Any) -> None:
        taken.append(news)
        if len(taken) == 3:
            raise ValueError("the third")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    portions = Portions(loop, take, clock)
    portions.post(report(1, 5 * MAX_OUTPUTS))
    await turns(1)
    clock.now += 1.0
    await turns(1)
    assert len(taken) == 3
    await turns(5)
    assert len(taken) == 5 and [str(error) for error in told] == ["the third"]


async def test_what_raises_stops_nothing_behind_it() -> None:
    taken: list[Any] = []
    told: list[Any] = []

    def take(news: Any) -> None:
        taken.append(news)
        if len(taken) == 1:
            raise ValueError("the first")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    portions = timeless(take)
    portions.post(report(1, 2 * MAX_OUTPUTS))
    portions.post(report(2, 1))
    await turns(5)
    assert len(taken) == 3 and [str(error) for error in told] == ["the first"]


def test_a_closed_loop_takes_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    assert not Portions(loop, lambda news: None).post(report(1, 1))


async def test_news_of_many_choices_is_cut_as_well() -> None:
    taken: list[Any] = []
    portions = timeless(taken.append)
    names = tuple((f"r{row}", 0) for row in range(2 * MAX_OUTPUTS + 1))
    advance = Advance(names, [(row,) for row in range(len(names))])
    portions.post(Report([Output("first", 0), advance], SchedulerStats()))
    await turns(10)
    assert [len(spelled(each.outputs)) for each in taken] == [1, MAX_OUTPUTS, MAX_OUTPUTS, 1]
    told = spelled([output for each in taken[1:] for output in each.outputs])
    assert told == spelled([advance])


def told(taken: list[Any]) -> dict[tuple[str, int], list[Any]]:
    """What each choice heard, in its order: tokens one by one, ends as they are."""
    heard: dict[tuple[str, int], list[Any]] = {}
    for output in spelled([output for report in taken for output in report.outputs]):
        row = heard.setdefault((output.id, output.choice), [])
        row += output.tokens if output.finish_reason is None else [output]
    return heard


@pytest.mark.parametrize("seed", range(20))
async def test_reports_that_wait_are_taken_in_as_one_and_each_choice_hears_all_in_its_order(
    seed: int,
) -> None:
    rng = random.Random(seed)
    names = [(f"r{row}", choice) for row in range(60) for choice in range(2)]
    reports: list[Report] = []
    for step in range(8):
        rng.shuffle(names)
        ended, names = names[:3], names[3:]
        outputs: list[Output | Advance] = [Output(*name, (step,), finish_reason="length") for name in ended]
        advancing = tuple(name for name in names if rng.random() < 0.9)
        outputs.append(Advance(advancing, [(1000 * step + row,) for row in range(len(advancing))]))
        reports.append(Report(outputs, SchedulerStats(steps=step)))
    taken: list[Any] = []
    portions = timeless(taken.append)
    for each in reports:
        portions.post(each)
    await turns(200)
    assert told(taken) == told(reports)
    assert all(len(spelled(each.outputs)) <= MAX_OUTPUTS for each in taken)
    assert len(taken) <= 1 + 144 // MAX_OUTPUTS, "one round, and not one a report"
    assert all(each.stats.steps == 7 for each in taken)


async def test_what_comes_after_a_report_waits_for_it_and_ends_a_round() -> None:
    taken: list[Any] = []
    portions = timeless(taken.append)
    names = tuple((f"r{row}", 0) for row in range(MAX_OUTPUTS + 1))
    advance = Report([Advance(names, [(row,) for row in range(len(names))])], SchedulerStats())
    for news in (advance, advance, advance, Stopped(None)):
        portions.post(news)
    await turns(10)
    assert taken[-1] == Stopped(None)
    assert [len(spelled(each.outputs)) for each in taken[:-1]] == [MAX_OUTPUTS, 1]
    assert spelled(taken[0].outputs)[0] == Output("r0", 0, (0, 0, 0))


async def test_what_comes_while_a_report_is_taken_in_waits_and_is_then_taken_in_as_one() -> None:
    taken: list[Any] = []
    portions = timeless(taken.append)
    portions.post(report(1, 2 * MAX_OUTPUTS))
    await turns(1)
    assert len(taken) == 1
    portions.post(report(2, 1))
    portions.post(report(3, 1))
    await turns(10)
    assert [len(each.outputs) for each in taken] == [MAX_OUTPUTS, MAX_OUTPUTS, 2]
    assert [each.stats.steps for each in taken] == [1, 1, 3]
