"""Wide products on an NVIDIA card, cool and busy: torch's kernel and ours in turns of 30 ms each.

    python benchmarks/kernels/wide_product.py [llama-1b,llama-8b] [1024,2048,8192] [--rounds 7]

Rows and weights are random, products are captured in a graph. The first turn of each finds the card cool, torch's a
little cooler than ours, which comes after it. Of the later ones the median counts, without the second: by then the card
is held back by its power, which is what long prompts do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from jitney.runtime.kernels.wide_product import WideProducts, wide_products

SHAPES = {
    "llama-1b": {"qkv": (3072, 2048), "up": (16384, 2048)},
    "llama-8b": {"qkv": (6144, 4096), "up": (28672, 4096)},
}
TURN_S = 0.03
COPIES = 2


def captured(launch: Callable[[], object]) -> torch.cuda.CUDAGraph:
    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph


def turns(graphs: list[torch.cuda.CUDAGraph], rounds: int) -> list[list[float]]:
    """Seconds of a replay, by graph and round."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    graphs[0].replay()
    torch.cuda.synchronize()
    replays = max(1, round(TURN_S / (time.perf_counter() - started)))
    marks = []
    for _ in range(rounds):
        for graph in graphs:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(replays):
                graph.replay()
            end.record()
            marks.append((start, end))
    torch.cuda.synchronize()
    seconds = [start.elapsed_time(end) / 1e3 / replays for start, end in marks]
    return [seconds[i :: len(graphs)] for i in range(len(graphs))]


def measured(wide: WideProducts, weights: torch.Tensor, rows: int, rounds: int) -> str:
    outputs, inputs = weights.shape[1:]
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, outputs, device="cuda", dtype=torch.bfloat16)
    if not wide.computes(x, weights[0], out):
        return "torch's"

    def by_torch() -> None:
        for weight in weights:
            torch.mm(x, weight.t(), out=out)

    def by_ours() -> None:
        for weight in weights:
            wide.computes(x, weight, out)

    torchs, ours = (
        [1e6 * seconds / COPIES for seconds in found]
        for found in turns([captured(by_torch), captured(by_ours)], rounds)
    )
    return (
        f"us: cool torch {torchs[0]:.1f} ours {ours[0]:.1f},"
        f" busy torch {median(torchs[2:]):.1f} ours {median(ours[2:]):.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="?", default=",".join(SHAPES))
    parser.add_argument("rows", nargs="?", default="1024,2048,8192")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    wide = wide_products(torch.empty(4 << 20, device="cuda"), processors)
    if wide is None or asked.rounds < 3:
        parser.error("expected cuBLASLt, and at least 3 rounds")
    for model in asked.models.split(","):
        for layer, shape in SHAPES[model].items():
            weights = torch.randn(COPIES, *shape, device="cuda", dtype=torch.bfloat16) * 0.02
            for rows in map(int, asked.rows.split(",")):
                print(model, layer, rows, "rows,", measured(wide, weights, rows, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
