"""Microseconds to sample one token for each of B rows, inside a captured graph, by what the rows ask for.

    python benchmarks/kernels/sampling.py [--vocab 151936] [--json FILE]

`floor` is the time to read the logits once at 2.97 TB/s. Peaked logits have a nucleus of tens of tokens, as a trained
model's; flat ones are standard normal, as random weights give them. `plain` graphs carry the launches of the search
whether or not a row is cut; `whole` ones do not; `full` ones carry adjustments and log-probabilities too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from jitney.runtime.batch import RowSampling, Seat
from jitney.runtime.cuda.arena import Arena, Patch
from jitney.runtime.cuda.sampling_state import SamplingState
from jitney.runtime.cuda.staging import Staging
from jitney.runtime.kernels.sampling import SamplingLaunches

BATCHES = (1, 8, 32, 64, 128, 256)
MOST = 256
KINDS: dict[str, tuple[dict[str, Any], dict[str, bool], str]] = {
    "greedy, whole": ({"temperature": 0.0}, {"full": False, "cuts": False}, "peaked"),
    "temperature, whole": ({"temperature": 0.8}, {"full": False, "cuts": False}, "peaked"),
    "temperature, plain": ({"temperature": 0.8}, {"full": False}, "peaked"),
    "top_k 50": ({"top_k": 50}, {"full": False}, "peaked"),
    "top_p 0.9": ({"top_p": 0.9}, {"full": False}, "peaked"),
    "top_k 20 top_p 0.95 T 0.6": (
        {"top_k": 20, "top_p": 0.95, "temperature": 0.6},
        {"full": False},
        "peaked",
    ),
    "min_p 0.05": ({"min_p": 0.05}, {"full": False}, "peaked"),
    "top_k 50, flat": ({"top_k": 50}, {"full": False}, "flat"),
    "top_p 0.9, flat": ({"top_p": 0.9}, {"full": False}, "flat"),
    "temperature, full": ({"temperature": 0.8}, {"full": True}, "peaked"),
    "penalties top_p 0.9, full": ({"presence_penalty": 0.5, "top_p": 0.9}, {"full": True}, "peaked"),
    "logprobs 5, full": ({"logprobs": 5}, {"full": True, "cuts": False}, "peaked"),
}


def peaked(rows: int, vocab: int) -> Tensor:
    values = torch.randn(rows, vocab, device="cuda") * 2.2
    likely = torch.randint(vocab, (rows, 200), device="cuda")
    heights = 8 + 2 * torch.distributions.Gumbel(0.0, 1.0).sample((rows, 200)).cuda()
    return values.scatter(1, likely, heights).bfloat16()


def graph_time(launch: Any, pieces: list[Tensor], replays: int = 12) -> float:
    """Median microseconds of one launch, of those that one graph holds."""
    launch(pieces[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for piece in pieces:
            launch(piece)
    times = []
    for _ in range(replays + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(pieces))
    return median(times[2:])


def measure(vocab: int, batches: tuple[int, ...] = BATCHES, **options: int) -> dict[str, dict[int, float]]:
    device = torch.device("cuda")
    arena = Arena()
    state = SamplingState(arena, MOST + 1, vocab)
    arena.allocate(device)
    staging = Staging(arena, 4)
    launches = SamplingLaunches(state.rows, MOST, vocab, torch.bfloat16, device, **options)
    logits = {
        "peaked": peaked(2 * MOST, vocab),
        "flat": torch.randn(2 * MOST, vocab, device=device).bfloat16(),
    }
    slots = torch.arange(MOST, dtype=torch.int32, device=device)
    positions = torch.full((MOST,), 40, dtype=torch.int32, device=device)
    results: dict[str, dict[int, float]] = {}
    for kind, (sampling, flags, shape) in KINDS.items():
        patch = Patch(arena)
        for slot in range(MOST):
            tokens = tuple(range(slot, slot + 40))
            state.seat(patch, Seat(slot, tokens, 20, 1000, 0, (), RowSampling(seed=slot, **sampling)))
        staging.apply(patch)
        results[kind] = {}
        for rows in batches:

            def launch(piece: Tensor, rows: int = rows, flags: dict[str, bool] = flags) -> None:
                launches.sample(piece, slots[:rows], positions[:rows], **flags)

            count = min(32, 2 * MOST // rows)
            pieces = [logits[shape][i * rows : (i + 1) * rows] for i in range(count)]
            results[kind][rows] = graph_time(launch, pieces)
    return results


def table(results: dict[str, dict[int, float]], vocab: int) -> str:
    batches = list(next(iter(results.values())))
    lines = [
        "| µs | " + " | ".join(f"B={rows}" for rows in batches) + " |",
        "| --- " * (len(batches) + 1) + "|",
    ]
    floors = [rows * vocab * 2 / 2.97e6 for rows in batches]
    for name, values in {"floor": dict(zip(batches, floors, strict=True)), **results}.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[rows]:.1f}" for rows in batches) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results = measure(asked.vocab)
    sys.stdout.write(table(results, asked.vocab) + "\n")
    if asked.json:
        asked.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
