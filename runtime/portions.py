"""The worker's news on its way to the loop: one wake-up a report, taken in a portion a turn.

A report of a step with many rows wakes as many readers. Taken in at once it would hold the loop for milliseconds;
in portions, what a reader was woken for is sent while the next ones are still to come, and timers and other sockets
have their turn in between. Nothing overtakes: later news waits until a report is all taken in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from .messages import News, Report

MAX_OUTPUTS = 32
"""Of a portion: about a millisecond with all that they set in motion."""


class Portions:
    """`post` may be called from any thread; the rest is the loop's. `take` is given the news, on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[News], None]) -> None:
        self._loop = loop
        self._take = take
        self._waiting: deque[News] = deque()

    def post(self, news: News) -> bool:
        """False if the loop is closed: nobody is left to take it."""
        try:
            self._loop.call_soon_threadsafe(self._put, news)
        except RuntimeError:
            return False
        return True

    def _put(self, news: News) -> None:
        is_idle = not self._waiting
        self._waiting.extend(_portions(news))
        if is_idle:
            self._next()

    def _next(self) -> None:
        """Take the first in, and come back for the others. It waits until it is taken in, so that no other begins."""
        try:
            self._take(self._waiting[0])
        finally:
            self._waiting.popleft()
            if self._waiting:
                self._loop.call_soon(self._next)


def _portions(news: News) -> list[News]:
    if not isinstance(news, Report) or len(news.outputs) <= MAX_OUTPUTS:
        return [news]
    return [
        msgspec.structs.replace(news, outputs=news.outputs[start : start + MAX_OUTPUTS])
        for start in range(0, len(news.outputs), MAX_OUTPUTS)
    ]
