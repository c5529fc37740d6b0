"""The kernel choices of the machine that exports: a start on it tries nothing out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..runtime.batch import Capacity
from ..runtime.config import EngineConfig
from ..runtime.model.config import ModelConfig
from ..runtime.model.program import Program
from ..runtime.native.forward import why_not
from ..runtime.process import num_cores
from ..runtime.steps.kernels import Kernels, choose_kernels, find_tile
from ..runtime.steps.machine_tiles import tile_choice
from ..runtime.steps.threads import default_threads
from ..runtime.weights.manifest import Limits, TileChoice

OUTPUTS = 4096
"""A matrix of more is tried out by so many of them, and what its last block of 64 has: that may have a kernel apart.
Kernels were seen to change with their number only below 1,000 (oneDNN for AVX, from 512 to 576)."""


def tiles_here(model: ModelConfig, limits: Limits) -> tuple[TileChoice, ...]:
    """For the CPU, with as many threads as serving takes and as many as a chat takes. Nothing is read: kernels go by
    shapes. None where own kernels compute, which need no trial."""
    kernels = choose_kernels(model, EngineConfig(device="cpu"))
    if why_not(model, kernels.dtype) is None:
        return ()
    most = limits.max_batch_tokens or Capacity(num_pages=1, page_size=1, max_rows=1).max_batch_tokens
    before = torch.get_num_threads()
    choices = []
    try:
        with torch.inference_mode():
            program = Program(kernels.linears)
            for num_threads in sorted({default_threads(), num_cores()}):
                torch.set_num_threads(num_threads)
                tile = find_tile(program, _drawn(model, kernels), kernels.dtype, most)
                choices.append(tile_choice(kernels, most, tile))
    finally:
        torch.set_num_threads(before)
    return tuple(choices)


def _drawn(model: ModelConfig, kernels: Kernels) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The matrices of a layer and the output layer (inputs, packed weights), each made when it is asked for."""
    hidden, inner, queries = model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim
    shapes = (
        (hidden, queries + 2 * model.num_kv_heads * model.head_dim, model.qkv_bias),
        (queries, hidden, model.attention_out_bias),
        (hidden, inner * (2 if model.gated_mlp else 1), model.mlp_bias),
        (inner, hidden, model.mlp_bias),
        (hidden, model.vocab_size, False),
    )
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=kernels.dtype)
    for inputs, outputs, biased in shapes:
        size = min(outputs, OUTPUTS + outputs % 64)
        yield inputs, kernels.linears.pack(draw(size, inputs), draw(size) if biased else None)
