"""Kernels compiled for a card that is not here, in a process of their own: `python compile_ahead.py FILE make|bring`.

Prints what came of it as JSON. Triton asks this driver for the card; a launch would fail, for want of all else."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor

from jitney.runtime.kernels.compilation import Kernels, rehearsed
from jitney.runtime.kernels.embedding import embedding
from jitney.runtime.kernels.kernel_file import KernelFile, MadeFor, read_kernels
from jitney.runtime.kernels.marks import _forget, forget
from jitney.runtime.kernels.wide_gated import in_blocks, wide_gated

CARD = MadeFor("Some Card 80GB", (9, 0), "3.6.0", "2.9.1+cu128")


class FakeDriver:
    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, src: Any, metadata: Any) -> None:
        return None


def three_kernels() -> None:
    """One of them by tensor descriptors, whatever the number of rows."""
    marks, x = torch.zeros(4, 64, dtype=torch.int32), torch.full((3, 64), 7.0)
    weight, many = torch.zeros(2, 64, 64, dtype=torch.bfloat16), torch.full((65, 64), 7.0).bfloat16()
    for rows in (64, 65):
        forget(marks, 1)
        embedding(torch.zeros(3, dtype=torch.int32), torch.zeros(9, 64), x, None, None)
        tiles = [in_blocks(many[:rows], 64, 64), in_blocks(weight, 2, 64, 64)]
        wide_gated[(1,)](*tiles, None, tiles[0], rows, 64, 64, 64, 64, 64, 1, "silu", "ieee")
    assert (x == 7).all() and (many == 7).all()


def beside() -> None:
    """Another thread's launch is not rehearsed: it is compiled at once."""
    ready = _forget.device_caches[0][0]
    before = len(ready)

    def asks() -> None:
        _forget.warmup(MockTensor(torch.int32), 1, 64, BLOCK=128, grid=(1,))

    def run() -> None:
        thread = threading.Thread(target=asks)
        thread.start()
        thread.join()
        assert len(ready) == before + 1
        asks()

    assert len(rehearsed(run)) == 1 and len(ready) == before + 1


def main(path: Path, what: str) -> None:
    driver.set_active(FakeDriver())
    kernels = Kernels(read_kernels(path) if what == "bring" else None)
    counts = [kernels.compile(three_kernels), kernels.compile(three_kernels)]
    binaries = kernels.binaries()
    if what == "make":
        path.write_bytes(KernelFile(CARD, {}, binaries).encoded())
        beside()
    cached = [name for _, _, names in os.walk(os.environ["TRITON_CACHE_DIR"]) for name in names]
    told = {"compiled": counts, "keys": sorted(binaries), "cached": len(cached)}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
