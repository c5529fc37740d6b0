"""The worker with a step by script: what it says, in which order, and what it survives."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from books import check_books
from spelled import spelled

from jitney.runtime import worker
from jitney.runtime.batch import Batch, Capacity, Outcomes, RowSampling
from jitney.runtime.errors import DeviceLost
from jitney.runtime.inbox import Inbox
from jitney.runtime.messages import Cancel, Command, Generate, News, Opened, Output, Report, Stop, Stopped
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.testing import ScriptedStep
from jitney.runtime.worker import MAX_FAILURES, StepLoop, Worker

Hook = Callable[[], None]


def request(name: str, *, tokens: int = 3, **fields: Any) -> Generate:
    return Generate(id=name, prompt=(1, 2, 3), sampling=RowSampling(seed=0), max_tokens=tokens, **fields)


def raising(turns: Iterable[int], error: BaseException | None = None) -> Hook:
    """Raise when called for the given times, counted from 1."""
    calls, bad = [0], set(turns)

    def hook() -> None:
        calls[0] += 1
        if calls[0] in bad:
            raise error or RuntimeError("scripted")

    return hook


class Stage:
    """A worker on its thread, and all that it says."""

    def __init__(self, *, launch: Hook = lambda: None, collect: Hook = lambda: None, depth: int = 0) -> None:
        capacity = Capacity(30, 4, 3, depth=depth)
        self.step = ScriptedStep(capacity, lambda row: 9, before=lambda batch: launch(), after=collect)
        self.inbox = Inbox()
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self.worker = Worker(
            lambda: self.step,
            lambda capacity: Scheduler(capacity, max_batch_tokens=16),
            self.inbox,
            self.news.put,
            lambda: 0.0,
        )

    def play(self, *commands: Command) -> list[Output]:
        """Everything at once, then the end."""
        for command in commands:
            self.inbox.put(command)
        self.worker.start()
        return self.until(lambda output: False)

    def until(self, wanted: Callable[[Output], bool]) -> list[Output]:
        """What is said up to an output, or up to the worker's end."""
        outputs: list[Output] = []
        while not isinstance(news := self.news.get(timeout=60), Stopped):
            if isinstance(news, Report):
                self.last = news.stats
                told = spelled(news.outputs)
                outputs += told
                if any(map(wanted, told)):
                    return outputs
        self.stopped = news
        assert self.worker.join(60) and self.news.empty(), "something was said after the last word"
        return outputs


def ends(outputs: list[Output]) -> dict[str, str]:
    found = [(output.id, str(output.finish_reason)) for output in outputs if output.finish_reason]
    assert len(dict(found)) == len(found), "a choice ended twice"
    return dict(found)


def finished(name: str) -> Callable[[Output], bool]:
    return lambda output: output.id == name and output.finish_reason is not None


@pytest.mark.parametrize("depth", [0, 2])
def test_it_opens_serves_and_stops_once(depth: int) -> None:
    stage = Stage(depth=depth)
    stage.inbox.put(request("a"))
    stage.worker.start()
    assert isinstance(stage.news.get(timeout=60), Opened)
    outputs = stage.until(finished("a"))
    assert [token for output in outputs for token in output.tokens] == [9, 9, 9]
    stage.inbox.put(Stop())
    stage.until(finished("nobody"))
    assert stage.stopped == Stopped(None) and stage.step.is_closed
    assert not stage.worker.is_busy or stage.worker.join(0)


def test_an_idle_worker_tells_of_a_device_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "QUIET_S", 0.001)
    monkeypatch.setattr(worker, "LOOK_S", 0.001)
    stage, lost, looks = Stage(), DeviceLost("gone"), []

    def prepare() -> bool:
        looks.append(len(looks))
        if len(looks) > 3:
            raise lost
        return False

    monkeypatch.setattr(stage.step, "prepare", prepare)
    stage.worker.start()
    stage.until(finished("nobody"))
    assert stage.stopped == Stopped(lost) and stage.step.is_closed
    assert stage.worker.step_age_s == 0 and len(looks) == 4


def test_what_an_idle_worker_makes_ready_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "QUIET_S", 0.001)
    stage, seen = Stage(), threading.Event()
    ages = []

    def prepare() -> bool:
        ages.append(stage.worker.is_busy)
        seen.set()
        return False

    stage.step.prepare = prepare  # type: ignore[method-assign]
    stage.worker.start()
    assert seen.wait(60)
    stage.inbox.put(Stop())
    stage.until(finished("nobody"))
    assert all(ages)


def test_who_comes_before_a_quiet_moment_does_not_wait_for_what_is_made_ready() -> None:
    stage, calls = Stage(), []
    stage.step.prepare = lambda: calls.append(stage.worker.is_busy) or True  # type: ignore[method-assign]
    stage.play(request("a"), request("b"), Stop())
    assert calls == []


def test_things_are_made_ready_one_after_the_other_until_somebody_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, story, waits = Stage(), list[str](), list[float | None]()
    drain = stage.inbox.drain

    def drained(*, wait: bool, patience_s: float | None = None) -> list[Command]:
        waits.append(patience_s if wait else 0)
        commands = drain(wait=wait, patience_s=0.001 if wait and patience_s == worker.QUIET_S else 60)
        story.extend(["came"] * len(commands))
        return commands

    def prepare() -> bool:
        story.append("ready")
        if story == ["ready"] * 3:
            stage.inbox.put(request("a", tokens=1))
            stage.inbox.put(Stop())
        return True

    monkeypatch.setattr(stage.inbox, "drain", drained)
    stage.step.prepare = prepare  # type: ignore[method-assign]
    stage.worker.start()
    stage.until(finished("nobody"))
    assert story == ["ready", "ready", "ready", "came", "came"]
    assert waits == [worker.QUIET_S, 0, 0, 0]


def test_what_comes_after_stop_is_never_read() -> None:
    stage = Stage()
    assert stage.play(Stop(), request("a")) == []
    assert stage.stopped == Stopped(None)
    assert len(stage.inbox.drain(wait=False)) <= 1


def test_stopping_amid_work_leaves_the_rest_unsaid() -> None:
    go = threading.Event()
    stage = Stage(collect=lambda: None if go.wait(60) else None)
    stage.inbox.put(request("a", tokens=100))
    stage.worker.start()
    stage.inbox.put(Stop())
    go.set()
    assert not ends(stage.until(finished("nobody")))
    assert stage.step.is_closed


@pytest.mark.parametrize("where", ["launch", "collect"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_step_that_raises_fails_only_the_rows_that_were_seated(where: str, depth: int) -> None:
    stage = Stage(depth=depth, **{where: raising([2])})  # type: ignore[arg-type]
    for name in "abcde":
        stage.inbox.put(request(name))
    stage.worker.start()
    told = ends(stage.until(finished("e")))
    assert told == {"a": "error", "b": "error", "c": "error", "d": "length", "e": "length"}
    assert stage.last.running == 0 and stage.last.pages_used == 0 and stage.last.free_rows == 3
    stage.inbox.put(Stop())
    stage.until(finished("nobody"))
    assert stage.stopped.error is None


def test_raises_in_a_row_end_it_and_a_success_between_does_not() -> None:
    stage = Stage(launch=raising(range(1, MAX_FAILURES + 1)))
    told = ends(stage.play(*(request(str(n)) for n in range(20))))
    assert set(told.values()) == {"error"} and len(told) == 3 * (MAX_FAILURES - 1)
    assert isinstance(stage.stopped.error, RuntimeError) and stage.step.is_closed

    stage = Stage(launch=raising([1, 2, 4, 5, 7, 8]))
    for n in range(20):
        stage.inbox.put(request(str(n), tokens=1, arrival=float(n)))
    stage.worker.start()
    assert len(ends(stage.until(finished("19")))) == 20
    stage.inbox.put(Stop())
    stage.until(finished("nobody"))
    assert stage.stopped.error is None


@pytest.mark.parametrize("error", [SystemExit("x"), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_ordinary_exception_ends_it_at_once(error: BaseException) -> None:
    stage = Stage(launch=raising([1], error))
    stage.play(request("a"))
    assert stage.stopped.error is error and stage.step.is_closed


def test_a_step_that_cannot_open_is_told_with_its_cause() -> None:
    stage = Stage()

    def fail() -> Any:
        raise MemoryError("no room")

    stage.worker._open_step = fail
    assert stage.play() == []
    assert isinstance(stage.stopped.error, MemoryError)


def test_a_step_that_cannot_close_is_told_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()

    def fail() -> None:
        raise OSError("stuck")

    monkeypatch.setattr(stage.step, "close", fail)
    stage.play(Stop())
    assert isinstance(stage.stopped.error, OSError)


def test_our_own_faults_are_not_taken_for_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scheduler, outcomes: Outcomes) -> list[Output]:
        raise AssertionError("the books do not balance")

    monkeypatch.setattr(Scheduler, "commit", broken)
    stage = Stage()
    assert stage.play(request("a")) == []
    assert isinstance(stage.stopped.error, AssertionError)


def test_cancelled_before_it_was_seated() -> None:
    stage = Stage()
    outputs = stage.play(request("a"), request("b"), Cancel("a"), Cancel("nobody"), Cancel("a"), Stop())
    assert not [output for output in outputs if output.id == "a"]


@pytest.mark.parametrize("depth", [0, 2])
def test_cancelled_in_every_state(depth: int) -> None:
    """Waiting, half-filled, decoding, with launches in flight, of one choice and of all."""
    for turns in range(14):
        capacity = Capacity(30, 4, 2, depth=depth)
        loop = StepLoop(ScriptedStep(capacity, lambda row: 9), Scheduler(capacity, max_batch_tokens=2))
        loop.obey(request("a", tokens=4, n=2))
        loop.obey(request("b", tokens=4))
        outputs: list[Output] = []
        for _ in range(turns):
            outputs += spelled(loop.turn(0.0) or [])
        loop.obey(Cancel("a", 0))
        loop.obey(Cancel("a"))
        check_books(loop.scheduler)
        heard = len(outputs)
        while not loop.is_idle:
            outputs += spelled(loop.turn(0.0) or [])
            check_books(loop.scheduler)
        assert not [output for output in outputs[heard:] if output.id == "a"]
        assert sum(len(output.tokens) for output in outputs if output.id == "b") == 4
        assert loop.scheduler.stats().pages_used == 0


def test_run_ahead_launches_before_it_collects_and_never_further_than_its_depth() -> None:
    in_flight, most = [0], [0]

    def launched() -> None:
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])

    def collected() -> None:
        in_flight[0] -= 1

    stage = Stage(launch=launched, collect=collected, depth=2)
    stage.inbox.put(request("a", tokens=20))
    stage.worker.start()
    stage.until(finished("a"))
    stage.inbox.put(Stop())
    stage.until(finished("nobody"))
    assert most[0] == 3 and in_flight[0] == 0


def test_an_expired_row_ends_within_a_turn() -> None:
    capacity = Capacity(30, 4, 2)
    loop = StepLoop(ScriptedStep(capacity, lambda row: 9), Scheduler(capacity, max_batch_tokens=16))
    loop.obey(request("a", tokens=20, deadline=5.0))
    loop.turn(0.0)
    assert ends(spelled(loop.turn(5.0) or [])) == {"a": "deadline"}
    assert loop.is_idle and loop.turn(6.0) is None


@pytest.mark.parametrize("seed", range(20))
def test_every_request_ends_once_whatever_fails(seed: int) -> None:
    rng = random.Random(seed)

    def maybe(batch: Batch | None = None) -> None:
        if rng.random() < 0.1:
            raise RuntimeError("scripted")

    capacity = Capacity(rng.randint(8, 30), 4, 3, depth=rng.randint(0, 3))
    loop = StepLoop(
        ScriptedStep(capacity, lambda row: 9, before=maybe, after=maybe),
        Scheduler(capacity, max_batch_tokens=8),
    )
    for n in range(30):
        loop.obey(request(str(n), tokens=rng.randint(1, 10)))
    outputs: list[Output] = []
    while not loop.is_idle:
        loop._failures = 0
        outputs += spelled(loop.turn(0.0) or [])
        check_books(loop.scheduler)
    assert len(ends(outputs)) == 30
