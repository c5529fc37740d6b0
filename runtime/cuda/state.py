"""What the device knows of each slot, and what the host tells it of the next pass.

By slot: the page table, the position that comes next, the last token. By pass: which slots decode, and which chunks
of prompts run. A pass of fixed size reads them all from fixed addresses, so a captured graph serves any batch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import Chunk, Seat
from .arena import Arena, Patch
from .sizes import CHUNK_ROWS, Sizes, slot_regions


class SlotState:
    """Declares its regions when made. `tables`, `positions`, `last_tokens` and the rest are device tensors once the
    arena is allocated. Entries of a page table past a row's own pages are page 0."""

    def __init__(self, arena: Arena, sizes: Sizes) -> None:
        self._arena = arena
        self._sizes = sizes
        self.idle = sizes.max_rows
        self._num_pages = [0] * sizes.num_slots
        for name, shape in slot_regions(sizes).items():
            arena.region(name, *shape)
        self._rows: tuple[int, ...] = ()
        self._bucket = 0

    def __getattr__(self, name: str) -> torch.Tensor:
        if name in ("tables", "positions", "last_tokens", "rows", "prompt", "chunks", "counter"):
            return self._arena.tensor(name)
        raise AttributeError(name)

    def seat(self, patch: Patch, seat: Seat) -> None:
        """Fill a slot anew. Its old page entries are overwritten as far as they are read again."""
        pages = np.zeros(max(self._num_pages[seat.slot], len(seat.pages)), dtype=np.int32)
        pages[: len(seat.pages)] = seat.pages
        self._num_pages[seat.slot] = len(seat.pages)
        patch.write("tables", seat.slot, pages)

    def grow(self, patch: Patch, slot: int, pages: tuple[int, ...]) -> None:
        patch.write("tables", slot, pages, at=self._num_pages[slot])
        self._num_pages[slot] += len(pages)

    def decode(self, patch: Patch, slots: tuple[int, ...], bucket: int) -> None:
        """Name the slots that decode in the next pass, padded to `bucket`; free of charge while they stay the same."""
        if slots == self._rows and bucket <= self._bucket:
            return
        rows = np.full(bucket, self.idle, dtype=np.int32)
        rows[: len(slots)] = slots
        patch.write("rows", 0, rows)
        self._rows, self._bucket = slots, bucket

    def rest(self, patch: Patch) -> None:
        """Nobody: a pass that runs now touches the idle slot and page 0 alone."""
        self._rows, self._bucket = (), 0
        patch.write("rows", 0, np.full(self._sizes.row_buckets[-1], self.idle, dtype=np.int32))
        patch.write("chunks", 0, self._no_chunks())

    def prefill(self, patch: Patch, chunks: Sequence[Chunk], tokens: Sequence[Sequence[int]]) -> None:
        """Name the chunks of the next pass: at most CHUNK_ROWS. `tokens`: those of each chunk. Chunks past the last
        are empty and start where the others end."""
        counts = np.array([chunk.count for chunk in chunks], dtype=np.int32)
        table = self._no_chunks()
        table[2] = counts.sum()
        table[0, : len(chunks)] = [chunk.slot for chunk in chunks]
        table[1, : len(chunks)] = [chunk.start for chunk in chunks]
        table[2, : len(chunks)] = np.cumsum(counts) - counts
        table[3, : len(chunks)] = counts
        table[4, : len(chunks)] = [chunk.slot if chunk.samples else self.idle for chunk in chunks]
        patch.write("chunks", 0, table)
        packed = b"".join([struct.pack(f"{len(ids)}i", *ids) for ids in tokens])  # sooner than by numpy
        patch.write("prompt", 0, np.frombuffer(packed, dtype=np.int32))

    def _no_chunks(self) -> NDArray[np.int32]:
        table = np.zeros((5, CHUNK_ROWS), dtype=np.int32)
        table[0] = table[4] = self.idle
        return table
