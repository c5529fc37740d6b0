"""How changes reach the device: a ring of pinned blocks that one kernel reads.

A block may be written again only when the kernel that read it is done. With `depth` launches in flight and one more
being planned, depth + 2 blocks mean that the host never waits here; should a launch need several, it waits for the
oldest block's event, so a block is never overwritten under the device's eyes.
"""

from __future__ import annotations

import torch

from ..kernels.patch import apply_patch
from .arena import Arena, Patch

CAPACITY = 1 << 18


class Staging:
    """`capacity`: words of a block; a larger patch takes several. Made under the stream that the passes use."""

    def __init__(self, arena: Arena, num_blocks: int, capacity: int = CAPACITY) -> None:
        self._words = arena.words
        on_device = self._words.is_cuda
        self._blocks = [
            torch.zeros((2, capacity), dtype=torch.int32, pin_memory=on_device) for _ in range(num_blocks)
        ]
        self._views = [block.numpy() for block in self._blocks]
        self._read = [torch.cuda.Event(blocking=True) if on_device else None for _ in self._blocks]
        self._stream = torch.cuda.current_stream() if on_device else None
        self._next = 0

    def apply(self, patch: Patch) -> None:
        """Enqueue the patch; the host may go on at once."""
        if patch.num_words:
            self._send(patch)

    @torch.inference_mode()
    def _send(self, patch: Patch) -> None:
        for offsets, values in patch.pieces(self._views[0].shape[1]):
            index, self._next = self._next, (self._next + 1) % len(self._blocks)
            event, view = self._read[index], self._views[index]
            if event is not None:
                event.synchronize()
            view[0, : len(offsets)] = offsets
            view[1, : len(offsets)] = values
            apply_patch(self._words, self._blocks[index], len(offsets))
            if event is not None:
                event.record(self._stream)
