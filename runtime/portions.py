"""The worker's news on its way to the loop: one wake-up a report, taken in by portions.

A report of a step with many rows is news for as many readers. Taken in at once it would hold the loop for milliseconds;
in portions, what a portion sets in motion is sent while the next ones are still to come, and timers and other sockets
have their turn in between. A portion a turn, but more after a long one: turns that read many new requests would
otherwise come between any two portions, and hold every answer up as often as there are portions. Once a newer report
waits, the loop is behind the device, and takes in what is left of this one at once: tokens before requests. Nothing
overtakes: later news waits until a report is all taken in. The reports that wait are taken in as one: a choice that
advanced in several of them is told of all its tokens at once, so that the loop has less to do the more it lags.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from .messages import Advance, News, Output, Report

T = TypeVar("T")

MAX_OUTPUTS = 32
"""Of a portion: about half a millisecond with all that they set in motion."""
ORDINARY_S = 0.003
"""What the loop may do between two portions, the sending of the first among it, before the next turn takes more."""
MOST_S = 0.004
"""As much longer as it took, but no longer than this: several portions' sending makes a long turn too."""


class Portions:
    """`post` may be called from any thread; the rest is the loop's. `take` is given the news, on the loop.

    `_waiting` is the crossing: one side appends, the other takes from its front, and neither waits for the other.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[News], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._loop = loop
        self._take = take
        self._clock = clock
        self._waiting: deque[News] = deque()
        self._parts: deque[News] = deque()

    def post(self, news: News) -> bool:
        """False if the loop is closed: nobody is left to take it."""
        self._waiting.append(news)
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            return False
        return True

    def _wake(self) -> None:
        if self._waiting and not self._parts:
            self._parts.extend(_portions(_gathered(self._waiting)))
            self._next()

    def _next(self, left_at: float | None = None) -> None:
        """Take the first in, and more of them if the loop has long been at other things since `left_at`, or all if it
        is behind; come back for the others."""
        came_at = self._clock()
        away_s = 0.0 if left_at is None else came_at - left_at
        until = came_at + min(max(0.0, away_s - ORDINARY_S), MOST_S)
        try:
            self._take_first()
            while self._parts and (self._waiting or self._clock() < until):
                self._take_first()
        finally:
            if self._waiting and not self._parts:
                self._parts.extend(_portions(_gathered(self._waiting)))
            if self._parts:
                self._loop.call_soon(self._next, self._clock())

    def _take_first(self) -> None:
        """It waits until it is taken in, so that no other begins."""
        try:
            self._take(self._parts[0])
        finally:
            self._parts.popleft()


def _gathered(waiting: deque[News]) -> News:
    """Takes out what comes next: all reports up to other news as one, or that news."""
    reports: list[Report] = []
    while waiting and isinstance(report := waiting[0], Report):
        reports.append(report)
        waiting.popleft()
    if not reports:
        return waiting.popleft()
    return reports[0] if len(reports) == 1 else _joined(reports)


def _joined(reports: list[Report]) -> Report:
    """Each choice's news in its order; that of different choices may change places."""
    outputs: list[Output | Advance] = []
    advanced: dict[tuple[str, int], tuple[int, ...]] = {}
    for output in [output for report in reports for output in report.outputs]:
        if isinstance(output, Advance):
            for name, tokens in zip(output.names, output.tokens, strict=True):
                advanced[name] = advanced.get(name, ()) + tokens
            continue
        name = output.id, output.choice
        if name in advanced:
            outputs.append(Output(*name, advanced.pop(name)))
        outputs.append(output)
    if advanced:
        outputs.append(Advance(tuple(advanced), tuple(advanced.values())))
    return Report(outputs, reports[-1].stats)


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
