"""The worker's news on its way to the loop: one wake-up a report, taken in a portion a turn.

A report of a step with many rows wakes as many readers. Taken in at once it would hold the loop for milliseconds;
in portions, what a reader was woken for is sent while the next ones are still to come, and timers and other sockets
have their turn in between. Nothing overtakes: later news waits until a report is all taken in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from .messages import Advance, News, Output, Report

T = TypeVar("T")

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
    """A report in parts that hold the news of a few choices each."""
    if not isinstance(news, Report):
        return [news]
    singles = [output for output in news.outputs if isinstance(output, Output)]
    parts: list[list[Output | Advance]] = [[*part] for part in _cut(singles)]
    for advance in news.outputs:
        if isinstance(advance, Advance):
            columns = zip(_cut(advance.names), _cut(advance.tokens), strict=True)
            parts += [[Advance(names, tokens)] for names, tokens in columns]
    return [Report(part, news.stats) for part in parts] or [news]


def _cut(column: Sequence[T]) -> list[Sequence[T]]:
    return [column[start : start + MAX_OUTPUTS] for start in range(0, len(column), MAX_OUTPUTS)]
