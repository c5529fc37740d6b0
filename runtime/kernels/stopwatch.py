"""Seconds of a linear layer on this card: many of them in one captured graph, each with weights of its own. Rows that
go in with eight bits are narrowed before; one row is narrowed by what is timed.

One weight read again and again would be served from the card's cache; here their sum exceeds it, as a model's does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from statistics import median

import torch
import triton
from torch import Tensor

from .choice import Choice, Task
from .linear import Linears
from .narrow import Rows, narrowed
from .norm import Norm
from .weight import Weight
from .workspace import Widths

MIN_BYTES = 200 << 20
MAX_COPIES = 40


class Stopwatch:
    """Owns a pool of random weights, `pool_bytes` large, for tasks of bf16, e4m3 and int8 weights. A task with a larger
    weight is beyond it."""

    def __init__(self, device: torch.device, *, pool_bytes: int, most_rows: int, widest: int) -> None:
        self._device = device
        self._pool = torch.randn(pool_bytes // 2, device=device, dtype=torch.bfloat16).mul_(0.03)
        widths = Widths(normed=widest, activated=widest, ups=2 * widest)
        self._linears = Linears(device, torch.bfloat16, max_tokens=most_rows, widths=widths)

    def __call__(self, task: Task, choice: Choice | None = None) -> float:
        """Median seconds of one call; of the default choice where none is given. Infinity where it cannot run."""
        launch, count = self._launches(task, choice)
        try:
            return replay_time(launch) / count
        except (RuntimeError, triton.OutOfResources):
            return float("inf")

    def launch(self, task: Task, choice: Choice) -> None:
        """What is timed, once."""
        self._launches(task, choice)[0]()

    def _launches(self, task: Task, choice: Choice | None) -> tuple[Callable[[], None], int]:
        self._linears.tuned = {} if choice is None else {task.key: choice}
        weights = self._weights(task)
        x = torch.randn(task.num_rows, task.num_inputs, device=self._device).bfloat16()
        out = torch.zeros(task.num_rows, task.num_outputs, device=self._device, dtype=torch.bfloat16)
        norm = Norm(x[0].clone(), None, 1e-5, True)
        rows = Rows(x) if task.bits == 16 or task.num_rows == 1 else Rows(*narrowed(x))

        def launch() -> None:
            for weight in weights:
                self._call(task, rows, norm, weight, out)

        return launch, len(weights)

    @cached_property
    def _fp8_pool(self) -> Tensor:
        return self._pool.to(torch.float8_e4m3fn)

    @cached_property
    def _int8_pool(self) -> Tensor:
        return self._fp8_pool.view(torch.int8)

    def _weights(self, task: Task) -> list[Weight]:
        shape = (task.num_outputs * (2 if task.gated else 1), task.num_inputs)
        elements = shape[0] * shape[1]
        narrow = self._int8_pool if task.weight_only else self._fp8_pool
        pool = self._pool if task.weight_bits == 16 else narrow
        scale = torch.ones(shape[0], device=self._device) if task.weight_bits == 8 else None
        needed = -(-MIN_BYTES // (elements * pool.dtype.itemsize))
        copies = min(MAX_COPIES, pool.numel() // elements, max(2, needed))
        return [Weight(pool[i * elements : (i + 1) * elements].view(shape), scale) for i in range(copies)]

    def _call(self, task: Task, x: Rows, norm: Norm, weight: Weight, out: Tensor) -> None:
        if task.gated:
            self._linears.norm_up(x.values, norm, weight, "silu", gated=True)
        elif task.normed:
            self._linears.norm_linear(x.values, norm, weight, out)
        elif task.added:
            self._linears.linear_add(x, weight, out)
        else:
            self._linears.linear(x, weight, out)


def replay_time(launch: Callable[[], None], replays: int = 7) -> float:
    """Median seconds of one replay of what `launch` enqueues."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launch()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            launch()
        graph.replay()
        times: list[float] = []
        for _ in range(replays):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
    return median(times)
