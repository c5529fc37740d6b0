"""The time of a scripted engine. A test holds it and lets it go, so that what is to be seen in the middle of an answer
is there for as long as it takes to look."""

from __future__ import annotations

import math
import time

NAP_S = 1e-6
"""Added to each rest: a sum of rests must not fall short of what is due by a rounding."""


class Pace:
    """A `ScriptedBackend`'s clock and sleep. Only the script's own rests let time pass; replies without delays go on
    while it is held. `sleep` is called on the worker's thread, the rest anywhere."""

    def __init__(self) -> None:
        self._now, self._end = 0.0, math.inf

    def clock(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        self._now = max(self._now, min(self._now + seconds + NAP_S, self._end))

    def hold(self, after_s: float = 0.0) -> None:
        """Time stands still once so much more of it has passed."""
        self._end = self._now + after_s

    def go(self) -> None:
        self._end = math.inf
