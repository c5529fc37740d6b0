"""Seconds of launches on this card, each replayed from a graph: what they take where the host is no hindrance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch


def replay_time(launch: Callable[[], None], replays: int = 7) -> float:
    """Median seconds of one replay of what `launch` enqueues."""
    return replay_times([launch], replays)[0]


def replay_times(launches: Sequence[Callable[[], None]], replays: int = 7) -> list[float]:
    """The median of each, replayed in turns, so that a card that gets warm is no hindrance to the later ones."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graphs = [_captured(launch, stream) for launch in launches]
        times: list[list[float]] = [[] for _ in graphs]
        for _ in range(replays):
            for graph, seconds in zip(graphs, times, strict=True):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                seconds.append(start.elapsed_time(end) / 1000)
    return [median(seconds) for seconds in times]


def _captured(launch: Callable[[], None], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Warm: launched once before, and replayed once."""
    launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    launch()
    graph.capture_end()
    graph.replay()
    return graph
