"""The kernel choices of the machine that exports: a start on it tries nothing out."""

from __future__ import annotations

import torch

from ..runtime.batch import Capacity
from ..runtime.config import EngineConfig
from ..runtime.model.config import ModelConfig
from ..runtime.model.program import Program
from ..runtime.native.forward import why_not
from ..runtime.process import num_cores
from ..runtime.steps.kernels import choose_kernels, find_tile
from ..runtime.steps.machine_tiles import tile_choice
from ..runtime.steps.threads import default_threads
from ..runtime.weights.manifest import Limits, TileChoice


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
                tile = find_tile(program, model, kernels, most)
                choices.append(tile_choice(kernels, most, tile))
    finally:
        torch.set_num_threads(before)
    return tuple(choices)
