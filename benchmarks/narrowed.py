"""Decode steps of several engine directories of one model, one after the other in the same process, so that a busy
machine disturbs all alike; and what their manifests say of their quality.

    python benchmarks/narrowed.py ENGINE [ENGINE …] [--rounds 100] [--rows 1]

Prints the median step in ms, the speed against the first engine, bytes, perplexity and KL.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from jitney.runtime.batch import Batch, Chunk, RowSampling, Seat, Step
from jitney.runtime.config import EngineConfig
from jitney.runtime.weights.engine import EngineCheckpoint

PROMPT, PAGES = 128, 12


def prefill(step: Step, rows: int) -> None:
    for slot in range(rows):
        tokens = tuple((slot * 997 + i * 31) % 40_000 for i in range(PROMPT))
        pages = tuple(range(1 + slot * PAGES, 1 + (slot + 1) * PAGES))
        seat = Seat(slot, tokens, PROMPT, PAGES * 32, 0, pages, RowSampling(seed=slot, temperature=0.0))
        step.collect(step.launch(Batch(0, (seat,), (), (Chunk(slot, 0, PROMPT, True),), ())))


def decode(step: Step, rows: int) -> float:
    """Milliseconds of one step."""
    started = time.perf_counter()
    step.collect(step.launch(Batch(0, (), (), (), tuple(range(rows)))))
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1)
    arguments = parser.parse_args()
    config = EngineConfig(device="cpu", max_context=1024, num_threads=2)
    opened = [EngineCheckpoint(path) for path in arguments.engines]
    steps = [engine.open_step(config) for engine in opened]
    for step in steps:
        prefill(step, arguments.rows)
        for _ in range(5):
            decode(step, arguments.rows)
    rounds = [[decode(step, arguments.rows) for step in steps] for _ in range(min(arguments.rounds, 200))]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    for engine, median in zip(opened, medians, strict=True):
        quality = engine.manifest.quality
        scores = f"perplexity {quality.perplexity:.2f}, KL {quality.kl:.4f}" if quality else "as the source"
        sys.stdout.write(
            f"{engine.name:20} {median:7.1f} ms {medians[0] / median:6.2f} x"
            f" {engine.manifest.weight_bytes / 1e6:8.1f} MB  {scores}\n"
        )
    for step in steps:
        step.close()


if __name__ == "__main__":
    main()
