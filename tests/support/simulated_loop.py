"""An event loop and a worker in simulated time: the real engine, one thread, every interleaving from one seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from jitney.runtime.batch import Capacity
from jitney.runtime.messages import Opened, Report, Stop, Stopped
from jitney.runtime.worker import StepLoop, Worker

T = TypeVar("T")


MAX_TURNS = 1_000_000
"""Of the loop, one after the other, in which no time passes."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Time jumps to the next timer when nothing is ready; blocking calls run at once, in place."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        self._num_turns = 0
        self._selector = self

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        assert timeout is not None, "nothing is ready and no timer is set: a hang"
        self._now += max(timeout, 0.0)
        self._num_turns = 0 if timeout > 0 else self._num_turns + 1
        assert self._num_turns < MAX_TURNS, "always something is ready and no time passes: a hang"
        return []

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What is no `Exception` ends the run, as a test's time that is up: asyncio would log it and go on."""
        error = context.get("exception")
        if isinstance(error, BaseException) and not isinstance(error, Exception):
            raise error
        super().call_exception_handler(context)

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def run_simulated(main: Callable[[SimulatedLoop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end; tasks left over are an error."""
    loop = SimulatedLoop()
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(main(loop))
        loop.run_until_complete(loop.shutdown_asyncgens())
        assert not asyncio.all_tasks(loop), "tasks left over"
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def simulated_worker(rng: random.Random, check: Callable[[StepLoop], None]) -> type[Worker]:
    """A `Worker` class whose turns are timers of the loop, each a random while after the last: `rng` decides how
    late. `check` sees the step loop after every turn."""

    class SimulatedWorker(Worker):
        def start(self) -> None:
            self._loop = asyncio.get_running_loop()
            self._steps: StepLoop | None = None
            self._loop.call_later(rng.random(), self._begin)

        def join(self, timeout_s: float | None = None) -> bool:
            return True

        def _begin(self) -> None:
            step = self._open_step()
            self._step = step
            self._steps = StepLoop(step, self._make_scheduler(step.capacity))
            self._post(Opened(step.capacity))
            self._again()

        def _again(self) -> None:
            late = rng.choice([0.0, 0.001, 0.001, 0.01, 0.2])
            if rng.random() < 0.002:
                late = rng.choice([5.0, 50.0])  # a stall
            self._loop.call_later(late, self._turn)

        def _turn(self) -> None:
            assert self._steps is not None
            try:
                outputs = self._steps.turn(self._clock()) if self._listen(self._steps) else None
                check(self._steps)
            except Exception as error:
                return self._leave(error)
            if self.is_stopped:
                return self._leave(None)
            self.heartbeat = self._clock()
            self._post(Report(outputs or [], self._steps.scheduler.stats()))
            self._again()

        def _listen(self, steps: StepLoop) -> bool:
            self.is_stopped = False
            for command in self._inbox.drain(wait=False):
                if isinstance(command, Stop):
                    self.is_stopped = True
                    return False
                steps.obey(command)
            self.is_busy = not steps.is_idle
            return True

        def _leave(self, error: BaseException | None) -> None:
            self._step.close()
            self._post(Stopped(error))

    return SimulatedWorker


def random_capacity(rng: random.Random, context: int) -> Capacity:
    """A pool between one context and several, any page size, rows, run-ahead, and tokens a launch."""
    size = rng.choice([1, 4, 8, 16])
    least = -(-context // size) + 1
    return Capacity(
        num_pages=least + rng.randrange(80 // size + 2),
        page_size=size,
        max_rows=rng.choice([1, 2, 4, 9]),
        depth=rng.choice([0, 0, 1, 2, 3]),
        tokens_per_launch=rng.choice([1, 1, 1, 2, 4]),
    )
