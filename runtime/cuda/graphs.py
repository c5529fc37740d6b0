"""Passes of fixed size, recorded once and replayed for any batch: on a card as CUDA graphs.

A size that is not recorded is computed launch by launch, and recorded once it has been. `record_next` fills the ladder
one by one into one pool: what decoding needs before the engine opens, the rest while it has nothing to do. Where there
is no memory for more, the sizes that are missing are launched one kernel after the other for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

import torch

from .sizes import Pass

logger = logging.getLogger("jitney")

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
        self._missing = dict.fromkeys(sizes)

    def run(self, size: Pass) -> None:
        """Enqueue a pass. The first of a size that is missing waits for what is in flight, to be recorded after it: an
        engine that is never without work would not have its graphs else."""
        replay = self._replays.get(size)
        if replay is not None:
            replay()
            return
        self._run(size)
        if size in self._missing:
            self._keep(size)

    def record_next(self) -> bool:
        """Record the first size that is missing; False when none is. What is warmed runs for real, on whatever it
        finds."""
        if not self._missing:
            return False
        size = next(iter(self._missing))
        self._keep(size, warm=True)
        return True

    def _keep(self, size: Pass, *, warm: bool = False) -> None:
        try:
            if warm:
                self._warm(size)
            self._replays[size] = self._record(partial(self._run, size))
            del self._missing[size]
        except torch.OutOfMemoryError as error:
            logger.warning("%d passes stay without a graph: %s", len(self._missing), error)
            self._missing.clear()

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
