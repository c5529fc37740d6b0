"""What the device itself can tell: how fast it reads memory, and for how long it was busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

READ_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}
REPEATS = 7


def bandwidth() -> float:
    """Bytes a second, as a copy reads and writes them: median of a few."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(READ_BYTES[kind], dtype=torch.uint8, device=kind)
    target = torch.empty_like(source)
    return median(2 * source.nbytes / _timed(lambda: target.copy_(source), kind) for _ in range(REPEATS))


def _timed(run: Callable[[], object], kind: str) -> float:
    import torch

    if kind == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def busy_s(run: Callable[[], object]) -> float | None:
    """Seconds in which the card computed while `run` ran, by its own record; None without a card."""
    import torch

    if not torch.cuda.is_available():
        return None
    profiler: Any = torch.profiler
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    on_card = [event for event in profile.events() if event.device_type.name == "CUDA"]
    spans = [event.time_range for event in on_card]
    return covered((span.start, span.end) for span in spans) / 1e6


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much of the line lies under at least one span."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
