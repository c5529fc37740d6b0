"""The one thread that computes: drain, plan, launch, collect, commit, post.

Ownership. The step and the scheduler are created, used and dropped on this thread and are visible to no other. What
comes in are commands through the inbox; what goes out are frozen news through `post`, which must be callable from
this thread, must not block, and receives `Opened` once, then one `Report` a turn (also after a turn that only heard
a cancel: the loop must learn of the seats), then `Stopped` exactly once, whatever happens. `heartbeat` and `is_busy`
are the only values that another thread reads; they are written here alone.

Failure. A step that raises loses the rows it was computing: they end with an error, the rest goes on. After
`MAX_FAILURES` raises without a committed step between them, or at a `DeviceLost`, the step is taken to be broken, and
the worker ends.
Anything else that raises ends the worker at once. In every case the last word is `Stopped`, with the cause.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from .batch import Capacity, Step, Ticket
from .errors import DeviceLost, JitneyError
from .inbox import Inbox
from .messages import Advance, Cancel, Generate, Look, News, Opened, Output, Report, Stop, Stopped, Unpin
from .scheduler import Scheduler

MAX_FAILURES = 3
QUIET_S, LOOK_S = 0.1, 5.0
"""An idle worker makes things ready once nothing has come for a moment, one after the other until something does. Then
it comes back to its step this often, so that a device that is lost is told of."""

logger = logging.getLogger("jitney")

Post = Callable[[News], None]


class Worker:
    """`start` it once; it ends after `Stop`, or on a fault."""

    def __init__(
        self,
        open_step: Callable[[], Step],
        make_scheduler: Callable[[Capacity], Scheduler],
        inbox: Inbox,
        post: Post,
        clock: Callable[[], float],
    ) -> None:
        self._open_step = open_step
        self._make_scheduler = make_scheduler
        self._inbox = inbox
        self._post = post
        self._clock = clock
        self._thread = threading.Thread(target=self.run, name="jitney-worker", daemon=True)
        self.heartbeat = clock()
        self.is_busy = False

    @property
    def step_age_s(self) -> float:
        """How long the turn in progress has lasted; 0 while there is nothing to do."""
        return self._clock() - self.heartbeat if self.is_busy else 0.0

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread's end; False if it is still running."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def run(self) -> None:
        error: BaseException | None = None
        try:
            self._serve()
        except BaseException as raised:
            if not isinstance(raised, JitneyError):  # those say all in their message, to whoever started us
                logger.exception("the worker ended")
            error = raised
        self._post(Stopped(error))

    def _serve(self) -> None:
        step = self._open_step()
        try:
            loop = StepLoop(step, self._make_scheduler(step.capacity))
            self._post(Opened(step.capacity))
            while self._obey(loop):
                outputs = loop.turn(self._clock())
                self.heartbeat = self._clock()
                self._post(Report(outputs or [], loop.scheduler.stats()))
        finally:
            step.close()

    def _obey(self, loop: StepLoop) -> bool:
        """Apply what the inbox holds, sleeping while there is nothing to do. False: stop."""
        self.is_busy = not loop.is_idle
        commands = self._inbox.drain(wait=loop.is_idle, patience_s=QUIET_S)
        while loop.is_idle and not commands:
            is_ready = not self._prepare(loop)
            commands = self._inbox.drain(wait=is_ready, patience_s=LOOK_S)
        self.heartbeat = self._clock()
        self.is_busy = True
        for command in commands:
            if isinstance(command, Stop):
                return False
            if isinstance(command, Look):
                self._post(loop.scheduler.seating.layout())
            else:
                loop.obey(command)
        return True

    def _prepare(self, loop: StepLoop) -> bool:
        """Watched like a turn: a device may hang in it as well."""
        self.heartbeat, self.is_busy = self._clock(), True
        try:
            return loop.prepare()
        finally:
            self.is_busy = False


class StepLoop:
    """The worker's turn without its thread: what simulations drive with a clock of their own."""

    def __init__(self, step: Step, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._step = step
        self._tickets: deque[Ticket] = deque()
        self._failures = 0

    @property
    def is_idle(self) -> bool:
        return self.scheduler.is_idle

    def prepare(self) -> bool:
        """Use a quiet moment; False when there is nothing left to make ready."""
        return self._step.prepare()

    def obey(self, command: Generate | Cancel | Unpin) -> None:
        if isinstance(command, Generate):
            self.scheduler.add(command)
        elif isinstance(command, Cancel):
            self.scheduler.cancel(command.id, command.choice)
        else:
            self.scheduler.seating.pins.release(command.id)

    def turn(self, now: float) -> list[Output | Advance] | None:
        """Plan and launch once if possible; collect the oldest launch if the run-ahead is used up or nothing was
        launched. Returns None if there was nothing to do at all."""
        outputs = self.scheduler.expire(now)
        batch = self.scheduler.plan()
        try:
            if batch is not None:
                self._tickets.append(self._step.launch(batch))
            if not self._tickets or (batch is not None and len(self._tickets) <= self._step.capacity.depth):
                return outputs if outputs or batch is not None else None
            outcomes = self._step.collect(self._tickets.popleft())
        except DeviceLost:
            raise
        except Exception as error:
            return outputs + self._failed(error)
        self._failures = 0
        return outputs + self.scheduler.commit(outcomes)

    def _failed(self, error: Exception) -> list[Output | Advance]:
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise error
        logger.exception("a step failed; its rows end with an error")
        self._tickets.clear()
        return self.scheduler.fail_all(f"the step failed: {type(error).__name__}: {error}")
