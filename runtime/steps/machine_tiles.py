"""Tiles that were found before on this very machine, so that a start tries nothing out."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from ..weights.manifest import TileChoice
from .kernels import Kernels
from .layout import Tile

logger = logging.getLogger("jitney")

_IDENTITY = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")


def machine() -> str:
    """What decides which kernel a library picks: the processor, torch, and what oneDNN is told to use."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        pairs = (line.partition(":") for line in first)
        facts = [value.strip() for key, _, value in pairs if key.strip() in _IDENTITY]
    except OSError:
        facts = [platform.machine(), platform.processor()]
    facts += [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return f"{torch.backends.cpu.get_cpu_capability()} {digest}, torch {torch.__version__}"


def tile_choice(kernels: Kernels, most: int, tile: Tile) -> TileChoice:
    """`tile` as found here, for batches of `most` tokens."""
    return TileChoice(
        machine=machine(),
        num_threads=torch.get_num_threads(),
        dtype=str(kernels.dtype).removeprefix("torch."),
        linears=kernels.linears.__name__.rpartition(".")[2],
        max_batch_tokens=most,
        least=tile.least,
        most=tile.most,
    )


def known_tile(kernels: Kernels, most: int, choices: Sequence[TileChoice]) -> Tile | None:
    """None, and a line in the log, where the choices are those of another machine or other settings."""
    if not choices:
        return None
    here = tile_choice(kernels, most, Tile(0, 0))
    for choice in choices:
        if msgspec.structs.replace(choice, least=0, most=0) == here and 1 <= choice.least <= choice.most:
            return Tile(choice.least, choice.most)
    logger.info(
        "the engine's kernel choices are not for this machine and these settings (%s, %d threads):"
        " trying the kernels out, which takes a moment; an export on this machine keeps the result",
        here.machine,
        here.num_threads,
    )
    return None
