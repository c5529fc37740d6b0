"""Passes of fixed size as CUDA graphs: captured once, from large to small into one pool, replayed for any batch.

A size without a graph is computed launch by launch. `capture_next` fills the ladder one by one: what decoding needs
before the engine opens, the rest while it has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from .forward import Pass


class Graphs:
    """`run` computes a pass launch by launch. One thread, one stream: the one that is current when it is made."""

    def __init__(self, run: Callable[[Pass], object], sizes: Iterable[Pass], *, enabled: bool) -> None:
        self._run = run
        self._graphs: dict[Pass, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if enabled else None
        self._missing = list(sizes) if enabled else []
        self._known = frozenset(self._missing)

    @property
    def num_missing(self) -> int:
        return len(self._missing)

    def has(self, size: Pass) -> bool:
        return size in self._graphs

    def run(self, size: Pass) -> None:
        graph = self._graphs.get(size)
        if graph is None:
            self._run(size)
        else:
            graph.replay()

    def capture_next(self) -> bool:
        """Capture the first size that has no graph yet; False when none is left. The device must hold no work whose
        results matter: the pass runs once for real, on padding."""
        if not self._missing:
            return False
        size = self._missing.pop(0)
        self._run(size)
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            self._run(size)
        self._graphs[size] = graph
        return True

    def clear(self) -> None:
        self._graphs.clear()
        self._missing.clear()
