"""So many requests are taken up in one turn of the loop.

When hundreds of clients ask at once, what all of them ask is read in one turn, which lasts as long as all of it takes,
and every answer that is being streamed stands still. Here they queue, each socket with one frame at most, and what is
streamed has its turn in between.
"""

from __future__ import annotations

import asyncio
from collections import deque

MOST = 8
"""Requests: some 10 ms with all that they set in motion."""


class Turnstile:
    """Of one loop at a time: where another has taken its place, nobody waits any more."""

    def __init__(self, most: int = MOST) -> None:
        self._most = self._left = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due_on: asyncio.AbstractEventLoop | None = None

    async def passed(self) -> None:
        """At once where few have come in this turn of the loop, else in a later one, in the order of coming."""
        self._come_back()
        if self._left and not self._waiting:
            self._left -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def _come_back(self) -> None:
        loop = asyncio.get_running_loop()
        if self._due_on is not loop:
            if self._due_on is not None:
                self._waiting.clear()
            loop.call_soon(self._next_turn)
        self._due_on = loop

    def _next_turn(self) -> None:
        self._due_on, self._left = None, self._most
        while self._waiting and self._left:
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)
                self._left -= 1
        if self._left < self._most:
            self._come_back()
