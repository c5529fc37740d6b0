"""How fast the engine has been in each of the last seconds: tokens, times to the first one, and gaps between them.

An observer of the engine, on its loop. It keeps one bucket a second in which something happened, for five minutes, so
that a dashboard that has just been opened already has a past to show.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ..runtime.observer import Gain
from ..runtime.response import Response

KEEP_S = 300
MAX_SAMPLES = 1024
"""Gaps that one second keeps; more are not needed for its percentiles."""


class Percentiles(msgspec.Struct, frozen=True):
    p50: float
    p90: float
    p99: float


class Second(msgspec.Struct, frozen=True):
    """What happened within one second. Times in seconds; None where nothing was measured."""

    tokens: int
    first_token_s: Percentiles | None
    gap_s: Percentiles | None


class _Bucket:
    def __init__(self) -> None:
        self.tokens = 0
        self.firsts = array("f")
        self.gaps = array("f")


class Pulse:
    """`clock` is the engine's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[int, _Bucket] = OrderedDict()

    def advanced(self, gains: Sequence[Gain]) -> None:
        now = self._clock()
        bucket = self._bucket(int(now))
        for gain in gains:
            bucket.tokens += gain.num_tokens
            if gain.is_first and gain.response.first_token_s is not None:
                bucket.firsts.append(gain.response.first_token_s)
            bucket.gaps.extend(gain.gaps[: MAX_SAMPLES - len(bucket.gaps)])

    def ended(self, response: Response) -> None:
        """What it used was told as it went."""

    def seconds(self, count: int) -> list[Second]:
        """The last `count` full seconds, oldest first."""
        now = int(self._clock())
        return [_second(self._buckets.get(at)) for at in range(now - count, now)]

    def recent(self, count: int) -> Second:
        """The last `count` full seconds as one; `tokens` are those of an average second."""
        now, whole = int(self._clock()), _Bucket()
        for at in range(now - count, now):
            bucket = self._buckets.get(at)
            if bucket is not None:
                whole.tokens += bucket.tokens
                whole.firsts.extend(bucket.firsts)
                whole.gaps.extend(bucket.gaps)
        return msgspec.structs.replace(_second(whole), tokens=round(whole.tokens / count))

    def _bucket(self, at: int) -> _Bucket:
        bucket = self._buckets.get(at)
        if bucket is None:
            bucket = self._buckets[at] = _Bucket()
            while next(iter(self._buckets)) < at - KEEP_S:
                self._buckets.popitem(last=False)
        return bucket


def _second(bucket: _Bucket | None) -> Second:
    if bucket is None:
        return Second(0, None, None)
    return Second(bucket.tokens, _percentiles(bucket.firsts), _percentiles(bucket.gaps))


def _percentiles(samples: Iterable[float]) -> Percentiles | None:
    """By the nearest rank."""
    ranked = sorted(samples)
    if not ranked:
        return None
    return Percentiles(*(round(ranked[-(-share * len(ranked) // 100) - 1], 6) for share in (50, 90, 99)))
