"""So many requests are taken up in one turn of the loop.

When hundreds of clients ask at once, what all of them ask is read in one turn, which lasts as long as all of it takes,
and every answer that is being streamed stands still. Here they queue, each socket with one frame at most, and what is
streamed has its turn in between.
"""

from __future__ import annotations

import asyncio
from collections import deque

MOST = 4
"""Requests: some 5 ms with all that they set in motion."""


class Turnstile:
    """Of the first loop that comes, and of the next when that is closed. Whoever comes on another just passes."""

    def __init__(self, most: int = MOST) -> None:
        self._most = self._left = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False

    async def passed(self) -> None:
        """At once where few have come lately, else in a later turn of the loop, in the order of coming. Between two
        looks at the queue, one a turn, so many pass."""
        loop = asyncio.get_running_loop()
        if not self._is_of(loop):
            return
        self._look_later(loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        place: asyncio.Future[None] = loop.create_future()
        self._waiting.append(place)
        await place

    def _is_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        if self._loop is None or self._loop.is_closed():
            self._loop, self._is_due, self._left = loop, False, self._most
            self._waiting.clear()
        return self._loop is loop

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever is let in here passes before the next look; until then newcomers queue behind them."""
        self._is_due, let_in = False, 0
        while self._waiting and let_in < self._most:
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)
                let_in += 1
        self._left = 0 if let_in else self._most
        if let_in:
            self._look_later(loop)
