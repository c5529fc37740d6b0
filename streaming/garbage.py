"""When a server collects cyclic garbage: a full collection walks all objects there are and holds every thread
meanwhile, 50 to 100 ms beside 256 sockets. So it waits until nothing is streamed.

Settings of the whole process, so this is for a program that is a server: `jitney serve`, not the engine.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

LOOK_S = 1.0
YOUNG, MIDDLE, OLD = 5_000, 200, 20
"""Thresholds of `gc`: new objects of a collection of the youngest, and how many of those come before the next older.
Without a quiet moment a full one comes after twenty million."""
WORTH = 20
"""Collections of the youngest, after which a quiet moment is used for a full one."""


class Garbage:
    """`look` belongs to the thread of the event loop, which is the one that a collection holds up most."""

    def __init__(self, is_quiet: Callable[[], bool]) -> None:
        self._is_quiet = is_quiet
        self._was_quiet = False

    def look(self) -> bool:
        """Call it once a `LOOK_S`. Collects when two looks in a row find it quiet and enough is new: True if so."""
        was_quiet, self._was_quiet = self._was_quiet, self._is_quiet()
        _, young, middle = gc.get_count()
        if not (was_quiet and self._was_quiet) or young + middle * MIDDLE < WORTH:
            return False
        gc.collect()
        return True


def settle() -> None:
    """What is there by now stays for good: no later collection looks at it."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def collected_when_quiet(is_quiet: Callable[[], bool]) -> AsyncIterator[None]:
    """The thresholds that were set before are back afterwards."""
    before, looking = gc.get_threshold(), asyncio.create_task(_look(Garbage(is_quiet)))
    gc.set_threshold(YOUNG, MIDDLE, OLD)
    try:
        yield
    finally:
        looking.cancel()
        gc.set_threshold(*before)


async def _look(garbage: Garbage) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        garbage.look()
