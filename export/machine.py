"""The kernel choices of the machine that exports: a start on it tries nothing out."""

from __future__ import annotations

import msgspec
import torch

from ..runtime.batch import Capacity
from ..runtime.config import EngineConfig
from ..runtime.model.config import ModelConfig
from ..runtime.model.layers import Weights, load_layers
from ..runtime.model.program import Program
from ..runtime.native.forward import why_not
from ..runtime.process import num_cores
from ..runtime.steps.kernels import choose_kernels, model_tile
from ..runtime.steps.machine_tiles import tile_choice
from ..runtime.steps.threads import default_threads
from ..runtime.weights.manifest import Limits, TileChoice

CONTEXT = 32
"""Tokens; the kernels of linear layers do not depend on it."""


def tiles_here(model: ModelConfig, weights: Weights, limits: Limits) -> tuple[TileChoice, ...]:
    """For the CPU, with as many threads as serving takes and as many as a chat takes. Of the layers only the first is
    read, and the output layer. None where own kernels compute, which need no trial."""
    one_layer = msgspec.structs.replace(model, num_layers=1, sliding_layers=None)
    kernels = choose_kernels(model, EngineConfig(device="cpu"))
    if why_not(model, kernels.dtype) is None:
        return ()
    most = limits.max_batch_tokens or Capacity(num_pages=1, page_size=1, max_rows=1).max_batch_tokens
    before = torch.get_num_threads()
    choices = []
    try:
        with torch.inference_mode():
            pack = kernels.linears.pack
            layers = load_layers(one_layer, weights, pack, kernels.dtype, CONTEXT, kernels.pack_rounded)
            program = Program(kernels.linears)
            for num_threads in sorted({default_threads(), num_cores()}):
                torch.set_num_threads(num_threads)
                tile = model_tile(program, model, layers, kernels, most)
                choices.append(tile_choice(kernels, most, tile))
    finally:
        torch.set_num_threads(before)
    return tuple(choices)
