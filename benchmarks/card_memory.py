"""What `jitney plan` says against what an NVIDIA card says is used, after every graph and some work.

    python benchmarks/card_memory.py llama-1b [--steps 200] max_rows=256,memory_bytes=17179869184 max_rows=16 ...

Weights are random; settings are `EngineConfig`'s, one engine after the other in one process. `used` is the card's own
count less what was used before the process began, so that nothing else may run there. Ends with an error where torch
asks the card for memory in the `--steps` that follow.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
from typing import Any

import torch
from card import play, requests, setting

from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import open_cuda_step
from jitney.runtime.cuda.plan import DevicePlan, plan_device
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.weights.hf_config import hf_config
from jitney.runtime.weights.random_weights import RandomWeights
from jitney.streaming.commands.benches.shapes import SHAPES

MIB = 2**20
WORK = [(200, 40)] * 64 + [(3000, 2)]


def used_bytes() -> int:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) * MIB


def settings(text: str) -> dict[str, Any]:
    return dict(setting(part) for part in text.split(","))


def allocations() -> int:
    """That torch has asked the card for, in all."""
    return int(torch.cuda.memory_stats()["num_device_alloc"])


def planned(model: ModelConfig, config: EngineConfig) -> DevicePlan:
    free = torch.cuda.mem_get_info()[0]
    return plan_device(model, config, free)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("engines", nargs="+", type=settings)
    asked = parser.parse_args()
    before = used_bytes()
    model = hf_config(asked.shape, SHAPES[asked.shape], stored_dtype="bfloat16")
    for given in asked.engines:
        config = EngineConfig(**({"max_context": 9216, "load_format": "random"} | given))
        plan = planned(model, config).total_bytes
        step = open_cuda_step(model, RandomWeights(asked.shape, model), config)
        while step.prepare():
            pass
        jobs = requests(WORK, model.vocab_size)
        play(step, jobs)
        asked_before, used, steps = allocations(), used_bytes() - before, 0
        while steps < asked.steps:
            steps += int(play(step, jobs)["turns"])
        if allocations() != asked_before:
            raise SystemExit(f"{allocations() - asked_before} allocations on the card in {steps} steps")
        step.close()
        del step
        gc.collect()
        torch.cuda.empty_cache()
        left = used_bytes() - before
        print(
            f"{asked.shape} {given}: planned {plan // MIB} MiB, used {used // MIB} MiB"
            f" ({100 * (used / plan - 1):+.2f} %), no allocation in {steps} steps,"
            f" left after closing {left // MIB} MiB", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
