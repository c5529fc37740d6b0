"""How changes reach the device: a ring of pinned blocks that one kernel reads.

A block may be written again only when the kernel that read it is done. With `depth` launches in flight and one more
being planned, depth + 2 blocks mean that the host never waits here; should a launch need several, it waits for the
oldest block's event, so a block is never overwritten under the device's eyes.
"""

from __future__ import annotations

import numpy as np
import torch

from ..kernels.patch import apply_patch
from .arena import Arena, Patch


class Staging:
    """`capacity`: the most words that one patch may hold."""

    def __init__(self, arena: Arena, num_blocks: int, capacity: int) -> None:
        self._words = arena.words
        on_device = self._words.is_cuda
        self._blocks = [
            torch.zeros((2, capacity), dtype=torch.int32, pin_memory=on_device) for _ in range(num_blocks)
        ]
        self._views = [block.numpy() for block in self._blocks]
        self._read = [torch.cuda.Event(blocking=True) if on_device else None for _ in self._blocks]
        self._next = 0
        self.capacity = capacity

    def apply(self, patch: Patch) -> None:
        """Enqueue the patch; the host may go on at once."""
        if not patch.num_words:
            return
        assert patch.num_words <= self.capacity, "a patch larger than a staging block"
        index, self._next = self._next, (self._next + 1) % len(self._blocks)
        event = self._read[index]
        if event is not None:
            event.synchronize()
        count = patch.packed(np.asarray(self._views[index]))
        apply_patch(self._words, self._blocks[index], count)
        if event is not None:
            event.record()
