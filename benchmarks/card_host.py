"""What a steady decode step costs the host on an NVIDIA card, by part: median microseconds.

    python benchmarks/card_host.py [--shape qwen3-0.6b] [--rows 1 32]

`launch` is all of it, `replay` and `event` its calls into CUDA; `collect` begins once the device is done. The worker
sleeps while it waits for the device, so every step begins with cold caches, as it does in an engine.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

from jitney.runtime.batch import Batch, Chunk, RowSampling, Seat
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import open_cuda_step
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.weights.hf_config import hf_config
from jitney.runtime.weights.random_weights import RandomWeights
from jitney.streaming.commands.benches.shapes import SHAPES

PROMPT, STEPS = 200, 100


class Stopwatches:
    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*values: Any) -> Any:
            started = time.perf_counter()
            result = call(*values)
            self.times[name].append(time.perf_counter() - started)
            return result

        return inner


def seat(step: CudaStep, rows: int) -> None:
    pages = -(-(PROMPT + 2 * STEPS) // step.capacity.page_size)
    seats = [
        Seat(row, (7,) * PROMPT, PROMPT, PROMPT + 2 * STEPS, 0, tuple(range(1 + row * pages, 1 + (row + 1) * pages)),
             RowSampling(seed=row))
        for row in range(rows)
    ]  # fmt: skip
    for each in seats:
        step.collect(step.launch(Batch(1, (each,), (), (Chunk(each.slot, 0, PROMPT, True),), ())))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    asked = parser.parse_args()
    model = hf_config(asked.shape, SHAPES[asked.shape], stored_dtype="bfloat16")
    config = EngineConfig(load_format="random", max_context=1024, max_rows=max(asked.rows))
    step = open_cuda_step(model, RandomWeights(asked.shape, model), config)
    assert isinstance(step, CudaStep)
    watches = Stopwatches()
    step._graphs.run = watches.timed("replay", step._graphs.run)  # type: ignore[method-assign]  # to time it
    step._outbox.posted = watches.timed("event", step._outbox.posted)  # type: ignore[method-assign]  # likewise
    launch, collect = watches.timed("launch", step.launch), watches.timed("collect", step.collect)
    for rows in asked.rows:
        seat(step, rows)
        watches.times.clear()
        batch = Batch(2, (), (), (), tuple(range(rows)))
        tickets: list[Any] = [launch(batch) for _ in range(step.capacity.depth + 1)]
        for _ in range(STEPS):
            for part in tickets[0]:
                part.posting.read()
            collect(tickets.pop(0))
            tickets.append(launch(batch))
        for ticket in tickets:
            step.collect(ticket)
        print(asked.shape, rows, *(f"{name} {median(t) * 1e6:.0f}" for name, t in watches.times.items()))
    step.close()


if __name__ == "__main__":
    main()
