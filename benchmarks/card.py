"""Fixed lists of requests straight through scheduler and step on an NVIDIA card: no event loop, no text.

python benchmarks/card.py llama-1b b1,b8,b32,mixed256 [--repeats 2] [--json FILE] [SETTING=VALUE ...]

Weights are random, so nothing is downloaded; settings are `EngineConfig`'s. A list is played `--repeats` times and the
last counts. `first` is the first token of the list, from the moment that all requests are there; `turn` the median time
of a turn of the worker. `step`, for lists of one length: the same list is played with one token each, and the rest of
the time is shared among the other tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import msgspec
import torch

from jitney.runtime.batch import RowSampling
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import open_cuda_step
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.messages import Generate, Output
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.weights.hf_config import hf_config
from jitney.runtime.weights.random_weights import RandomWeights
from jitney.runtime.worker import StepLoop
from jitney.streaming.commands.benches.lists import LISTS, Lengths, drawn
from jitney.streaming.commands.benches.shapes import SHAPES


def requests(lengths: Lengths, vocab: int) -> list[Generate]:
    """Those with the longest answers first, as `generate` has them."""
    asked = sorted(zip(drawn(lengths, vocab), lengths, strict=True), key=lambda one: -one[1][1])
    return [
        Generate(
            id=f"r{i}",
            prompt=tuple(prompt),
            sampling=RowSampling(seed=i, temperature=0.6),
            max_tokens=answer,
            arrival=float(i),
        )
        for i, (prompt, (_, answer)) in enumerate(asked)
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
            assert not isinstance(output, Output) or output.error is None, output
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
        "turn_ms": statistics.median(turns) * 1e3,
        "turns": len(turns),
    }


def measured(step: CudaStep, jobs: list[Generate], repeats: int) -> dict[str, float]:
    figures = [play(step, jobs) for _ in range(repeats)][-1]
    (answer, *others) = {job.max_tokens for job in jobs}
    if answer > 1 and not others:
        firsts = play(step, [msgspec.structs.replace(job, max_tokens=1) for job in jobs])
        figures["firsts_ms"] = firsts["wall_s"] * 1e3
        figures["step_ms"] = (figures["wall_s"] - firsts["wall_s"]) / (answer - 1) * 1e3
    return figures


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, int(value) if value.isdigit() else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("lists", help=", ".join(LISTS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("settings", nargs="*", type=setting)
    asked = parser.parse_args()
    model = hf_config(asked.shape, SHAPES[asked.shape], stored_dtype="bfloat16")
    config = EngineConfig(**({"max_context": 9216, "load_format": "random"} | dict(asked.settings)))
    started = time.perf_counter()
    step = open_cuda_step(model, RandomWeights(asked.shape, model), config)
    torch.cuda.synchronize()
    opened_s = time.perf_counter() - started
    while step.prepare():  # as an engine does that has nothing to do
        pass
    cells: list[dict[str, Any]] = [{"list": "open", "wall_s": opened_s}]
    for name in asked.lists.split(","):
        jobs = requests(LISTS[name], model.vocab_size)
        figures = measured(step, jobs, asked.repeats)
        cells.append({"list": name, **figures})
        print(asked.shape, name, *(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)
    step.close()
    if asked.json:
        device = torch.cuda.get_device_name()
        with open(asked.json, "w") as file:
            json.dump(
                {"shape": asked.shape, "device": device, "torch": torch.__version__, "cells": cells}, file
            )


if __name__ == "__main__":
    main()
