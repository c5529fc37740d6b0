"""What `/metrics` tells Prometheus: the engine's own counters, and what answers used and took, by key.

Counted in plain lists, so that a token costs well under a microsecond; turned into samples only when asked for.
Labels are the model, the names of keys and the finish reasons: nothing that a client can make up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..runtime.events import Event
from ..runtime.stats import Stats

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
GAPS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
LABELS = ("model", "key")


class Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, *values: float) -> None:
        for value in values:
            self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += sum(values)

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        total, buckets = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self._sum)


class _OfKey:
    """What the answers of one key came to."""

    def __init__(self) -> None:
        self.prompt_tokens = self.generated_tokens = self.cached_tokens = 0
        self.finished = Counter[str]()
        self.gaps = Histogram(GAPS)
        self.times = {name: Histogram(SECONDS) for name in _TIMES}


class Metrics:
    """One per app; touched by its loop alone."""

    def __init__(self) -> None:
        self._keys: defaultdict[str, _OfKey] = defaultdict(_OfKey)

    def gaps(self, key: str, seconds: Iterable[float]) -> None:
        """Each between two deliveries of tokens of one answer."""
        self._keys[key].gaps.observe(*seconds)

    def ended(self, key: str, done: Event, reasons: Iterable[str]) -> None:
        """An answer is over: its last event, and the finish reasons of its choices."""
        of_key, usage, times = self._keys[key], done.usage, done.times
        of_key.finished.update(reasons)
        if usage is not None:
            of_key.prompt_tokens += usage.prompt_tokens
            of_key.generated_tokens += usage.completion_tokens
            of_key.cached_tokens += usage.cached_tokens
        if times is None:
            return
        queued, first, total = times.queued_s, times.first_token_s, times.total_s
        prefill = first - queued if first is not None and queued is not None else None
        for name, value in zip(_TIMES, (first, queued, prefill, total), strict=True):
            if value is not None:
                of_key.times[name].observe(value)

    def families(self, stats: Stats, model: str) -> list[Metric]:
        """All samples of this moment."""
        return [*_of_engine(stats, model), *self._of_keys(model)]

    def _of_keys(self, model: str) -> Iterator[Metric]:
        for field, text in _TOKENS.items():
            counter = CounterMetricFamily(f"jitney_{field}", text, labels=LABELS)
            for key, of_key in self._keys.items():
                counter.add_metric((model, key), getattr(of_key, field))
            yield counter
        finished = CounterMetricFamily(
            "jitney_finished", "Choices that ended, by reason.", labels=(*LABELS, "reason")
        )
        for key, of_key in self._keys.items():
            for reason, count in of_key.finished.items():
                finished.add_metric((model, key, reason), count)
        yield finished
        gaps = HistogramMetricFamily(
            "jitney_token_gap_seconds", "Between two deliveries of tokens.", labels=LABELS
        )
        for key, of_key in self._keys.items():
            of_key.gaps.add_to(gaps, (model, key))
        yield gaps
        for name, text in _TIMES.items():
            family = HistogramMetricFamily(f"jitney_{name}_seconds", text, labels=LABELS)
            for key, of_key in self._keys.items():
                of_key.times[name].add_to(family, (model, key))
            yield family


def _of_engine(stats: Stats, model: str) -> Iterator[Metric]:
    for kind, listed in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for field, text in listed.items():
            family = kind(f"jitney_{field}", text, labels=("model",))
            family.add_metric((model,), getattr(stats, field))
            yield family
    share = stats.kv_pages_used / stats.kv_pages_total if stats.kv_pages_total else 0.0
    usage = GaugeMetricFamily("jitney_kv_usage_ratio", "Share of the KV pages in use.", labels=("model",))
    usage.add_metric((model,), share)
    yield usage


_GAUGES = {
    "running": "Rows that decode or prefill.",
    "waiting": "Requests that wait for a seat.",
    "kv_pages_total": "KV pages that there are.",
    "kv_pages_used": "KV pages in use.",
    "kv_pages_pinned": "Of those: held for whoever continues a warm-up.",
    "kept_responses": "Responses that are over and can still be followed.",
    "kept_bytes": "What those hold in memory, roughly.",
    "step_age_s": "Seconds since the last step ended; 0 while there is nothing to do.",
}
_COUNTERS = {
    "prefix_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_hits": "Prompt tokens found there.",
    "preemptions": "Rows that gave their pages back to be computed again.",
    "steps": "Steps launched.",
    "late_events": "Events discarded because their answer was over.",
}
_TOKENS = {
    "prompt_tokens": "Prompt tokens of ended answers.",
    "generated_tokens": "Generated tokens of ended answers.",
    "cached_tokens": "Prompt tokens of ended answers that the prefix cache held.",
}
_TIMES = {
    "first_token": "From acceptance to the first token.",
    "queue": "From acceptance to leaving the queue.",
    "prefill": "From leaving the queue to the first token.",
    "answer": "From acceptance to the end.",
}
