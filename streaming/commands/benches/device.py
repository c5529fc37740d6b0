"""What the device itself can tell: how fast it reads memory, and for how long it was busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, Literal

from ....runtime.process import has_card

Kind = Literal["cuda", "cpu"]

READ_BYTES: dict[Kind, int] = {"cuda": 2 << 30, "cpu": 256 << 20}
REPEATS = 7


def kind_of(device: str) -> Kind:
    """What an engine with this setting computes on. Raises `InvalidField` where there is no such card."""
    return "cuda" if device != "cpu" and has_card(required=device == "cuda") else "cpu"


def bandwidth(kind: Kind) -> float:
    """Bytes a second, as a copy reads and writes them: median of a few. On a card: before an engine takes its memory,
    and it finds all of it free again."""
    import torch

    found = _copied(kind)
    if kind == "cuda":
        torch.cuda.empty_cache()
    return found


def _copied(kind: Kind) -> float:
    import torch

    source = torch.ones(READ_BYTES[kind], dtype=torch.uint8, device=kind)
    target = torch.empty_like(source)
    return median(2 * source.nbytes / _timed(lambda: target.copy_(source), kind) for _ in range(REPEATS))


def _timed(run: Callable[[], object], kind: Kind) -> float:
    import torch

    if kind == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def busy_s(run: Callable[[], object]) -> float:
    """Seconds in which the card computed while `run` ran, by its own record."""
    import torch

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
