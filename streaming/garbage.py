"""When a server collects cyclic garbage. A full collection holds every thread, 50 to 100 ms beside 256 sockets: so it
comes when nothing is streamed, and seldom otherwise. The young are collected meanwhile, milliseconds at a time.

A setting of the whole process, so this is for a program that is a server: `jitney serve`, not the engine.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

LOOK_S = 1.0
YOUNG = 10_000
"""New objects that stay, after which they are looked at, where Python has 700 and spends a tenth of the loop on it."""
MOST, WORTH = 300, 10
"""Of these collections: so many, and what stayed is collected at any moment, so that garbage stays below some 400 MB;
so many, and a quiet moment is used."""


class Garbage:
    """`look` belongs to the thread of the event loop, which is the one that a collection holds up most."""

    def __init__(self, is_quiet: Callable[[], bool]) -> None:
        self._is_quiet = is_quiet
        self._was_quiet = False

    def look(self) -> bool:
        """Call it once a `LOOK_S`. Collects when two looks in a row find it quiet and enough is new: True if so."""
        was_quiet, self._was_quiet = self._was_quiet, self._is_quiet()
        if not (was_quiet and self._was_quiet) or gc.get_count()[1] < WORTH:
            return False
        gc.collect()
        return True


def settle() -> None:
    """What is there by now stays for good: no later collection looks at it."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def collected_when_quiet(is_quiet: Callable[[], bool], look_s: float = LOOK_S) -> AsyncIterator[None]:
    """The thresholds that were set before are back afterwards. Raises what `is_quiet` does, at the end."""
    young, middle, old = gc.get_threshold()
    gc.set_threshold(YOUNG, MOST, old)
    looking = asyncio.create_task(_look(Garbage(is_quiet), look_s))
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


async def _look(garbage: Garbage, look_s: float) -> None:
    while True:
        await asyncio.sleep(look_s)
        garbage.look()
