"""Microseconds of each linear layer of a decode step, inside captured graphs with rotating weights.

    python benchmarks/kernels/linear.py [--models llama-8b,…] [--rows 1,8,…] [--weights bf16] [--tune] [--json FILE]

`floor` is the time to read the weight once at 2.97 TB/s, `chosen` the chosen kernels with norm, activation and
addition, `library` the same by torch's product with the norm and activation as launches of their own, `fixed` by the
kernel of deterministic mode. With fp8 these are products alone, of rows that are narrow already. `step` is all layers
of the model and its output layer in one graph, in their order and without attention; with fp8 it narrows every row.
`--tune` measures the candidates of each task first and keeps the fastest where the engine looks for them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from jitney.runtime.kernels.choice import LIBRARY, Choice, Stored, Task, fixed_choice
from jitney.runtime.kernels.linear import Linears
from jitney.runtime.kernels.narrow import Rows
from jitney.runtime.kernels.norm import Norm
from jitney.runtime.kernels.stopwatch import Stopwatch, replay_time
from jitney.runtime.kernels.tuned import choices_file, load_choices, store_choices, tune
from jitney.runtime.kernels.weight import Weight
from jitney.runtime.kernels.workspace import Widths
from jitney.runtime.weights.cache import cache_root

BYTES_PER_SECOND = 2.97e12


class Shape(NamedTuple):
    layers: int
    hidden: int
    qkv: int
    attended: int
    intermediate: int
    vocab: int


MODELS = {
    "qwen3-0.6b": Shape(28, 1024, 4096, 2048, 3072, 151936),
    "llama-1b": Shape(16, 2048, 3072, 2048, 8192, 128256),
    "llama-8b": Shape(32, 4096, 6144, 4096, 14336, 128256),
    "qwen3-8b": Shape(36, 4096, 6144, 4096, 12288, 151936),
}


def tasks(shape: Shape, rows: int, kind: Stored) -> dict[str, Task]:
    found = {
        "qkv": Task(shape.qkv, shape.hidden, rows, 16, normed=True),
        "out": Task(shape.hidden, shape.attended, rows, 16, added=True),
        "up": Task(shape.intermediate, shape.hidden, rows, 16, normed=True, gated=True),
        "down": Task(shape.hidden, shape.intermediate, rows, 16, added=True),
        "head": Task(shape.vocab, shape.hidden, rows, 16, normed=True),
    }
    return {name: task.stored_as(kind) for name, task in found.items()}


def num_bytes(task: Task) -> int:
    return task.num_outputs * (2 if task.gated else 1) * task.num_inputs * task.weight_bits // 8


class Pool:
    """One large random tensor, cut into weights from its start again and again."""

    def __init__(self, device: torch.device, size: int, kind: Stored) -> None:
        block = torch.randn(1 << 27, device=device).mul_(0.03)
        dtype = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}[kind]
        self._values = torch.empty(size // dtype.itemsize, dtype=dtype, device=device)
        for part in self._values.split(block.numel()):
            part.copy_(block[: part.numel()] * (1000 if kind == "int8" else 1))
        self._scale = None if kind == "bf16" else torch.ones(1 << 19, device=device)
        self.used = 0

    def weight(self, task: Task) -> Weight:
        rows = task.num_outputs * (2 if task.gated else 1)
        start, self.used = self.used, self.used + rows * task.num_inputs
        values = self._values[start : self.used].view(rows, task.num_inputs)
        return Weight(values, None if self._scale is None else self._scale[:rows])


def step_time(linears: Linears, shape: Shape, rows: int, kind: Stored, pool: Pool) -> float:
    """Seconds of one step's linear layers, in one graph."""
    device, by_name, pool.used = torch.device("cuda"), tasks(shape, rows, kind), 0
    layers = [
        {name: pool.weight(by_name[name]) for name in by_name if name != "head"} for _ in range(shape.layers)
    ]
    head = pool.weight(by_name["head"])

    def blank(width: int) -> Tensor:
        return torch.randn(rows, width, device=device).mul_(0.1).bfloat16()

    x, attended = blank(shape.hidden), blank(shape.attended)
    qkv, logits, norm = blank(shape.qkv), blank(shape.vocab), Norm(blank(shape.hidden)[0], None, 1e-5, True)

    def launch() -> None:
        for layer in layers:
            linears.norm_linear(x, norm, layer["qkv"], qkv)
            linears.linear_add(Rows(attended), layer["out"], x)
            linears.linear_add(linears.norm_up(x, norm, layer["up"], "silu", gated=True), layer["down"], x)
        linears.norm_linear(x, norm, head, logits)

    return replay_time(launch)


def measure(
    models: list[str], rows: list[int], weights: Stored, choices: dict[str, Choice]
) -> list[dict[str, Any]]:
    device = torch.device("cuda")
    largest = max(
        MODELS[name].layers * sum(num_bytes(task) for task in tasks(MODELS[name], 1, weights).values())
        for name in models
    )
    watch = Stopwatch(device, pool_bytes=2 << 30, most_rows=max(rows), widest=16384)
    pool = Pool(device, largest, weights)
    widths = Widths(normed=16384, activated=16384, ups=32768, narrow=16384)
    linears = Linears(device, torch.bfloat16, max_tokens=max(rows), widths=widths, tuned=choices)
    results = []
    for name in models:
        for count in rows:
            for layer, task in tasks(MODELS[name], count, weights).items():
                kinds = {"chosen": linears.choice(task), "library": LIBRARY, "fixed": fixed_choice(task)}
                seconds = {kind: watch(task, choice) for kind, choice in kinds.items()}
                results.append(row(name, count, weights, layer, num_bytes(task), seconds))
            by_name = tasks(MODELS[name], count, weights)
            size = MODELS[name].layers * sum(num_bytes(by_name[key]) for key in ("qkv", "out", "up", "down"))
            step = step_time(linears, MODELS[name], count, weights, pool)
            results.append(
                row(name, count, weights, "step", size + num_bytes(by_name["head"]), {"chosen": step})
            )
    return results


def row(
    model: str, rows: int, weights: Stored, layer: str, size: int, seconds: dict[str, float]
) -> dict[str, Any]:
    micros = {f"{kind}_us": value * 1e6 for kind, value in seconds.items()}
    floor, speed = size / BYTES_PER_SECOND * 1e6, size / seconds["chosen"] / 1e12
    times = "  ".join(f"{kind} {value * 1e6:8.1f}" for kind, value in seconds.items())
    print(f"{model:12s} M={rows:<4d} {layer:5s} floor {floor:8.1f}  {times}  {speed:.2f} TB/s", flush=True)
    shape = {"model": model, "rows": rows, "weights": weights, "layer": layer, "floor_us": floor}
    return {**shape, **micros, "tb_s": speed}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rows", default="1,8,16,32,64")
    parser.add_argument("--weights", default="bf16", choices=get_args(Stored))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    models, rows = options.models.split(","), [int(count) for count in options.rows.split(",")]
    path = choices_file(cache_root(), torch.cuda.get_device_name())
    choices = load_choices(path)
    if options.tune:
        watch = Stopwatch(torch.device("cuda"), pool_bytes=2 << 30, most_rows=max(rows), widest=16384)
        wanted = [
            task for name in models for m in rows for task in tasks(MODELS[name], m, options.weights).values()
        ]
        choices = tune(wanted, watch, choices)
        store_choices(path, choices)
    results = measure(models, rows, options.weights, choices)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
