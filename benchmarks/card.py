"""Fixed lists of requests straight through scheduler and step on an NVIDIA card: no event loop, no text.

python benchmarks/card.py llama-1b b1,b8,b32,mixed256 [--repeats 2] [--json FILE] [SETTING=VALUE ...]

Weights are random, so nothing is downloaded; settings are `EngineConfig`'s. A list is played `--repeats` times and the
last counts. `step` is the median time of a turn of the worker while the list is played; `first` the first token of the
list, from the moment that all requests are there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

import torch

from jitney.runtime.batch import RowSampling
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import open_cuda_step
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.messages import Generate
from jitney.runtime.model.config import ModelConfig, RopeScaling
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.weights.random_weights import RandomWeights
from jitney.runtime.worker import StepLoop

LLAMA3 = {"original_max_position": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": dict(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16, num_kv_heads=8,
        head_dim=128, max_position=40960, norm_eps=1e-6, qk_norm=True, rope_theta=1e6, tied_embeddings=True,
    ),
    "llama-1b": dict(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32, num_kv_heads=8,
        head_dim=64, max_position=131072, rope_theta=5e5, tied_embeddings=True,
        rope_scaling=RopeScaling(kind="llama3", factor=32.0, **LLAMA3),
    ),
    "llama-8b": dict(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32, num_kv_heads=8,
        head_dim=128, max_position=131072, rope_theta=5e5,
        rope_scaling=RopeScaling(kind="llama3", factor=8.0, **LLAMA3),
    ),
    "qwen3-8b": dict(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_layers=36, num_heads=32, num_kv_heads=8,
        head_dim=128, max_position=40960, norm_eps=1e-6, qk_norm=True, rope_theta=1e6,
    ),
}  # fmt: skip


def lists() -> dict[str, list[tuple[int, int]]]:
    """Lengths of prompts and answers."""
    draw = random.Random(0)
    return {
        "mixed256": [(draw.randint(100, 1024), draw.randint(100, 1024)) for _ in range(256)],
        "b1": [(128, 256)],
        "b8": [(128, 256)] * 8,
        "b32": [(1024, 256)] * 32,
        "b64": [(1024, 256)] * 64,
        "1k1k256": [(1024, 1024)] * 256,
        "prefill8k": [(8192, 1)] * 16,
    }


def requests(lengths: list[tuple[int, int]], vocab: int) -> list[Generate]:
    draw, high = random.Random(1), min(vocab, 120_000)
    return [
        Generate(
            id=f"r{i}",
            prompt=tuple(draw.randrange(300, high) for _ in range(prompt)),
            sampling=RowSampling(seed=i, temperature=0.6),
            max_tokens=answer,
            arrival=float(i),
        )
        for i, (prompt, answer) in enumerate(lengths)
    ]


def play(step: CudaStep, jobs: list[Generate]) -> dict[str, float]:
    loop = StepLoop(step, Scheduler(step.capacity, prefix_cache=False))
    for job in jobs:
        loop.obey(job)
    started, first, tokens, turns = time.perf_counter(), 0.0, 0, []
    while not loop.is_idle:
        before = time.perf_counter()
        outputs = loop.turn(0.0) or ()
        turns.append(time.perf_counter() - before)
        for output in outputs:
            assert output.error is None, output.error
            tokens += len(output.tokens)
        if tokens and not first:
            first = time.perf_counter() - started
    wall = time.perf_counter() - started
    prompt_tokens = sum(len(job.prompt) for job in jobs)
    return {
        "wall_s": wall,
        "output_tok_s": tokens / wall,
        "prompt_tok_s": prompt_tokens / wall,
        "first_ms": first * 1e3,
        "step_ms": statistics.median(turns) * 1e3,
    }


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, int(value) if value.isdigit() else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("lists", help=", ".join(lists()))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("settings", nargs="*", type=setting)
    asked = parser.parse_args()
    model = ModelConfig(**SHAPES[asked.shape])
    config = EngineConfig(**({"max_context": 9216, "load_format": "random"} | dict(asked.settings)))
    started = time.perf_counter()
    step = open_cuda_step(model, RandomWeights(asked.shape, model), config)
    torch.cuda.synchronize()
    cells: list[dict[str, Any]] = [{"list": "open", "wall_s": time.perf_counter() - started}]
    for name in asked.lists.split(","):
        jobs = requests(lists()[name], model.vocab_size)
        figures = [play(step, jobs) for _ in range(asked.repeats)][-1]
        cells.append({"list": name, **figures})
        print(asked.shape, name, *(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)  # noqa: T201
    step.close()
    if asked.json:
        device = torch.cuda.get_device_name()
        with open(asked.json, "w") as file:
            json.dump(
                {"shape": asked.shape, "device": device, "torch": torch.__version__, "cells": cells}, file
            )


if __name__ == "__main__":
    main()
