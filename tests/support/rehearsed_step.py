"""A step without its card: what a rehearsal notes, and what passes of any size launch beside it, as JSON; and which
of its products' choices an export would not have timed."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal
from unittest.mock import patch

import msgspec
import torch
from compile_ahead import FakeDriver
from tiny_models import random_weights, small_llama
from triton.runtime import driver

from jitney.export.card import tasks
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import build_step
from jitney.runtime.cuda.plan import plan_device
from jitney.runtime.cuda.sizes import Pass
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.kernels import linear
from jitney.runtime.kernels.choice import MAX_SKINNY_ROWS, Choice, Task, default_choice
from jitney.runtime.kernels.compilation import Kernels, rehearsed


class Noting(Kernels):
    """Compiles nothing."""

    def compile(self, rehearse: Any) -> int:
        self._variants = rehearsed(rehearse)
        return 0


def passes(step: CudaStep) -> None:
    """Any batch that the step may be given, by its size, through all layers."""
    ladder = step._ladder
    for rows in range(9):
        for tokens in (0, 1, 40, 65, 100, 200, 256):
            for chunks in (1, 17) if tokens else (0,):
                for kind in ((False, False), (True, False), (False, True)):
                    if rows or tokens:
                        cuts, full = kind
                        size = ladder.size(rows, tokens, chunks, cuts=cuts, full=full, fresh=tokens == 40)
                        assert isinstance(size, Pass)
                        hidden = step._forward.run(size)
    for count in range(1, ladder.max_samples + 1):
        tokens = torch.zeros(count, dtype=torch.int32)
        step._forward.score_prompt(hidden[:1].expand(count, -1), 0, tokens)


def main(quantize: Literal["fp8"] | None) -> None:
    driver.set_active(FakeDriver())
    model = small_llama(sliding_window=70, sliding_layers=(True, False, True))
    config = EngineConfig(max_batch_tokens=256, max_rows=8, tune_process=False, quantize=quantize)
    plan = plan_device(model, config, 8 * 2**30, value_bytes=2)
    plan = msgspec.structs.replace(plan, sizes=msgspec.structs.replace(plan.sizes, num_pages=40))
    kernels, device = Noting(), torch.device("cpu")
    step = build_step(model, random_weights(model), config, plan, torch.bfloat16, device, kernels=kernels)
    layers: set[str] = set()

    def noted(task: Task) -> Choice:
        layers.add(task.key)
        return default_choice(task)

    with torch.inference_mode(), patch.object(linear, "default_choice", noted):
        launched = rehearsed(lambda: passes(step))
    timed = {task.key for task in tasks(model, quantize or "bf16")}
    others = [function.fn.__name__ for function, key in launched if (function, key) not in kernels._variants]
    untimed = [key for key in layers - timed if int(key.split("-m")[1].split("-")[0]) <= MAX_SKINNY_ROWS]
    told = {"rehearsed": len(kernels._variants), "others": others, "layers": len(layers), "untimed": untimed}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main("fp8" if "fp8" in sys.argv else None)
