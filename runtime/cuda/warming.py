"""What a pass is warmed with before its graph is captured: a part of it, run for real; and where the library's products
are, its kernels for them, timed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.cublaslt import CublasLt
from ..kernels.library import Library
from ..kernels.replay import replay_times
from ..kernels.tuned import store
from ..model.layers import Layers
from .sizes import Pass

Warm = Callable[[Pass], object]
logger = logging.getLogger("jitney")


def library_for(workspace: Tensor, ranks: dict[str, int]) -> Library | None:
    """None where torch's CUDA has no cuBLASLt, which is said. `workspace` is what its kernels may write to."""
    try:
        return Library(CublasLt(workspace), ranks, replay_times)
    except (OSError, RuntimeError) as error:
        logger.warning("products are torch's choice: %s", error)
        return None


def timing(warm: Warm, library: Library, layers: Layers, path: Path | None) -> Warm:
    """`warm`, but products that the library's ranks do not know are timed with the weights of all layers on the way;
    what came of it is kept in the file."""
    matrices = [
        part["weight"] for parts in layers.layers for part in parts.values() if part["weight"].ndim == 2
    ]

    def timed(size: Pass) -> None:
        num_known = len(library.ranks)
        with library.timing(matrices):
            warm(size)
        if path is not None and len(library.ranks) > num_known:
            torch.cuda.current_stream().synchronize()
            store(path, library.ranks)

    return timed
