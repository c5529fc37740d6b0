"""The end of a task that only waits beside another one. It is told of it: a task that anyio cancels is garbage, with
all that it knew, until the collector finds it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio.lowlevel


class Ending:
    def __init__(self) -> None:
        self._has_come = asyncio.Event()

    @property
    def has_come(self) -> bool:
        return self._has_come.is_set()

    async def within(self, seconds: float) -> bool:
        """Whether it has come, at the latest after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_come.wait()
        return self.has_come

    async def come(self) -> None:
        """Who waits `within` ends before this returns; cancel the others then."""
        self._has_come.set()
        await anyio.lowlevel.checkpoint()
