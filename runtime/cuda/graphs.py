"""Passes of fixed size, recorded once and replayed for any batch: on a card as CUDA graphs.

A size that is not recorded is computed launch by launch. `record_next` fills the ladder one by one, from large to
small into one pool: what decoding needs before the engine opens, the rest while it has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch

from .sizes import Pass

Replay = Callable[[], object]
Record = Callable[[Callable[[], object]], Replay]
"""Gives what replays a pass of which every kernel has been launched before."""


class Graphs:
    """`run` computes a pass launch by launch, `warm` a part of it that launches each of its kernels: no library may
    load one while a graph is captured. Called by one thread."""

    def __init__(
        self,
        run: Callable[[Pass], object],
        sizes: Iterable[Pass],
        record: Record,
        warm: Callable[[Pass], object],
    ) -> None:
        self._run, self._record, self._warm = run, record, warm
        self._replays: dict[Pass, Replay] = {}
        self._missing = list(sizes)

    def run(self, size: Pass) -> None:
        replay = self._replays.get(size)
        if replay is None:
            self._run(size)
        else:
            replay()

    def record_next(self) -> bool:
        """Record the first size that is missing; False when none is. What is warmed runs for real, on whatever it
        finds."""
        if not self._missing:
            return False
        size = self._missing.pop(0)
        self._warm(size)
        self._replays[size] = self._record(partial(self._run, size))
        return True

    def give_up(self) -> int:
        """Record no more; gives how many were missing."""
        count = len(self._missing)
        self._missing.clear()
        return count

    def clear(self) -> None:
        self._replays.clear()
        self._missing.clear()


def cuda_recorder() -> Record:
    """Captures on the calling thread's current stream. All graphs share one pool: they never run at the same time."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], object]) -> Replay:
        stream = torch.cuda.current_stream()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            run()
        return graph.replay

    return record


def plain_recorder(run: Callable[[], object]) -> Replay:
    """The naive twin: a replay computes launch by launch."""
    return run
