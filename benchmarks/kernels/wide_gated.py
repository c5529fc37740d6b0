"""Norm, gate, up and activation of long prompts: by the library and a launch for the activation, and in one product.

    python benchmarks/kernels/wide_gated.py [qwen3-0.6b,llama-1b,llama-8b] [512,1024,2048,4096,8192] [--rounds 7]

In turns of 30 ms each, in captured graphs; the median of all but the first two, which find the card cool.
"""

from __future__ import annotations

import argparse
from statistics import median

import torch
from wide_product import COPIES, captured, turns

from jitney.runtime.kernels.choice import LIBRARY, WIDE_GATED, Task
from jitney.runtime.kernels.linear import Linears
from jitney.runtime.kernels.norm import Norm
from jitney.runtime.kernels.processors import num_processors
from jitney.runtime.kernels.weight import Weight
from jitney.runtime.kernels.wide_product import wide_products
from jitney.runtime.kernels.workspace import Widths

SHAPES = {"qwen3-0.6b": (3072, 1024), "llama-1b": (8192, 2048), "llama-8b": (14336, 4096)}
DEVICE = torch.device("cuda", 0)


def measured(shape: tuple[int, int], rows: int, rounds: int) -> list[float]:
    """Microseconds by the library, and in one."""
    (outputs, inputs), dtype = shape, torch.bfloat16
    linears = Linears(DEVICE, dtype, max_tokens=rows, widths=Widths(inputs, outputs, 2 * outputs, inputs))
    linears.wide = wide_products(linears.scratch, num_processors(DEVICE))
    x = torch.randn(rows, inputs, device=DEVICE, dtype=dtype)
    weights = [
        Weight(torch.randn(2 * outputs, inputs, device=DEVICE, dtype=dtype) * 0.02) for _ in range(COPIES)
    ]
    norm = Norm(torch.ones(inputs, device=DEVICE, dtype=dtype), None, 1e-5, True)

    def launch() -> None:
        for weight in weights:
            linears.norm_up(x, norm, weight, "silu", gated=True)

    graphs = []
    for choice in (LIBRARY, WIDE_GATED):
        linears.tuned[Task(outputs, inputs, rows, 16, normed=True, gated=True).key] = choice
        graphs.append(captured(launch))
    return [1e6 * median(seconds[2:]) / COPIES for seconds in turns(graphs, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="?", default=",".join(SHAPES))
    parser.add_argument("rows", nargs="?", default="512,1024,2048,4096,8192")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    if asked.rounds < 3:
        parser.error("expected at least 3 rounds")
    for model in asked.models.split(","):
        for rows in map(int, asked.rows.split(",")):
            library, one = measured(SHAPES[model], rows, asked.rounds)
            print(model, rows, f"rows, us: library {library:.1f} in one {one:.1f}", flush=True)


if __name__ == "__main__":
    main()
