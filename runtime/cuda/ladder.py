"""Which sizes of a pass have a graph, and which of them a batch is run as."""

from __future__ import annotations

from collections.abc import Iterator

from ..kernels.choice import ROW_BUCKETS
from .forward import Pass
from .sizes import CHUNK_ROWS, Sizes

TOKEN_BUCKETS = (16, 64, 128, 256, 512, 1024, 2048, 4096)
"""Prompt tokens of a pass with a graph; more are launched one by one, since the device then has work enough to hide
that."""
FEW_CHUNKS = 16
"""Chunks of a pass with a graph."""
MIXED_ROWS = (8, 32, 64, 128, 256, 512)
EAGER_STEP = 64
"""Prompt tokens of a pass without a graph are padded to a multiple of this."""


class Ladder:
    def __init__(self, sizes: Sizes) -> None:
        self._rows = sizes.row_buckets
        most = self._rows[-1]
        self._mixed = (0, *(rows for rows in MIXED_ROWS if rows < most), most)
        self.token_buckets = tuple(tokens for tokens in TOKEN_BUCKETS if tokens <= sizes.prefill_tokens)
        self._most_tokens = sizes.prefill_tokens
        self.max_samples = sizes.max_samples

    def size(
        self, num_rows: int, num_tokens: int, num_chunks: int, *, cuts: bool, full: bool, fresh: bool
    ) -> Pass:
        """The smallest pass that holds a batch."""
        if not num_tokens:
            return Pass(_least(self._rows, num_rows), 0, 0, cuts or full, full)
        if num_chunks <= FEW_CHUNKS and self.token_buckets and num_tokens <= self.token_buckets[-1]:
            return Pass(
                _least(self._mixed, num_rows), _least(self.token_buckets, num_tokens), FEW_CHUNKS, True, full
            )
        tokens = min(-(-num_tokens // EAGER_STEP) * EAGER_STEP, self._most_tokens)
        return Pass(_least((0, *self._rows), num_rows), tokens, CHUNK_ROWS, True, full, fresh)

    def decoding(self, *, cuts: bool = False, full: bool = False) -> Iterator[Pass]:
        """From large to small, so that the small share the large ones' memory."""
        for rows in reversed(self._rows):
            yield Pass(rows, 0, 0, cuts or full, full)

    def mixed(self) -> Iterator[Pass]:
        """Few enough to capture them all: sampled as if some row had cuts."""
        for tokens in reversed(self.token_buckets):
            for rows in reversed(self._mixed):
                yield Pass(rows, tokens, FEW_CHUNKS, True, False)

    def launched(self) -> Iterator[Pass]:
        """Of the passes without a graph, small ones of every kind: many prompts, and what adjusts logits."""
        for rows in (0, *self._rows):
            for tokens in (EAGER_STEP, 2 * EAGER_STEP):
                for fresh in (False, True):
                    yield self.size(rows, tokens, CHUNK_ROWS, cuts=True, full=False, fresh=fresh)
        for rows in self._mixed:
            yield Pass(rows, self.token_buckets[0], FEW_CHUNKS, True, True)

    def scored(self) -> Iterator[int]:
        """Numbers of a prompt's tokens that are scored at a time, one for each kernel that may compute their logits."""
        counts = {count for rows in ROW_BUCKETS for count in (rows, rows + 1)} | {self.max_samples}
        return (count for count in sorted(counts) if count <= self.max_samples)


def _least(buckets: tuple[int, ...], wanted: int) -> int:
    return next(bucket for bucket in buckets if bucket >= wanted)
