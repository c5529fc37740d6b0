"""The card of the machine that exports: its fastest choices, timed, and all that a start on it launches, compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from ..runtime.config import EngineConfig
from ..runtime.cuda.open import FP8_CAPABILITY, open_cuda_step
from ..runtime.kernels.choice import ROW_BUCKETS, Choice, Stored, Task, candidates
from ..runtime.kernels.compilation import Kernels
from ..runtime.kernels.kernel_file import KernelFile, this_card
from ..runtime.kernels.stopwatch import Stopwatch
from ..runtime.kernels.tuned import tune
from ..runtime.model.config import ModelConfig
from ..runtime.model.layers import Weights
from ..runtime.weights.manifest import Limits

POOL_BYTES = 2 << 30
"""Of weights to time products with; layers of more than half of it keep their built-in choice."""


def kernels_here(model: ModelConfig, weights: Weights, limits: Limits) -> KernelFile:
    """For a start with the engine's own sizes; with others, what they need beside it is compiled at the start.

    Raises what opening the step raises."""
    here = this_card()
    narrow = _narrow(model, here.capability)
    kernels = Kernels()
    kernels.choices = timed(model, ["bf16", *narrow])
    for quantize in (*narrow, None):
        config = EngineConfig(
            device="cuda", quantize=quantize, max_rows=limits.max_rows, max_context=limits.max_context,
            max_batch_tokens=limits.max_batch_tokens,
        )  # fmt: skip
        open_cuda_step(model, weights, config, kernels).close()
    return KernelFile(here, dict(kernels.choices), kernels.binaries())


def _narrow(model: ModelConfig, capability: tuple[int, int]) -> list[Literal["int8", "fp8"]]:
    """As which the card keeps what the engine stores, if any."""
    if model.quantization == "int8":
        return ["int8"]
    return ["fp8"] if model.quantization == "fp8" and capability >= FP8_CAPABILITY else []


def timed(model: ModelConfig, kinds: Sequence[Stored]) -> dict[str, Choice]:
    """The fastest choice for each layer and number of rows, by `Task.key`; none where the model's norm or type leaves
    no choice."""
    if model.norm != "rms" or model.dtype == "float32":
        return {}
    choices = _fastest(model, [task for kind in kinds for task in tasks(model, kind)])
    torch.cuda.empty_cache()
    return choices


@torch.inference_mode()
def _fastest(model: ModelConfig, wanted: list[Task]) -> dict[str, Choice]:
    widest = max(model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim)
    device = torch.device("cuda", torch.cuda.current_device())
    watch = Stopwatch(device, pool_bytes=POOL_BYTES, most_rows=ROW_BUCKETS[-1], widest=widest)

    def launch_all() -> None:
        for task in wanted:
            for choice in candidates(task):
                watch.launch(task, choice)

    Kernels().compile(launch_all)
    return tune(wanted, watch, {})


def tasks(model: ModelConfig, kind: Stored) -> Iterator[Task]:
    """The products of a layer and of the output layer, for each number of rows that has a choice of its own."""
    hidden, inner, attended = model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim
    qkv = attended + 2 * model.num_kv_heads * model.head_dim
    for rows in ROW_BUCKETS:
        for task in (
            Task(qkv, hidden, rows, 16, normed=True),
            Task(hidden, attended, rows, 16, added=True),
            Task(inner, hidden, rows, 16, normed=True, gated=model.gated_mlp),
            Task(hidden, inner, rows, 16, added=True),
            Task(model.vocab_size, hidden, rows, 16, normed=True),
        ):
            if task.num_outputs * task.num_inputs * (2 if task.gated else 1) <= POOL_BYTES // 4:
                yield task.stored_as(kind)
