"""Which sizes of a pass have a graph, and which of them a batch is run as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..kernels.choice import MAX_GATED_ROWS, ROW_BUCKETS
from .sizes import CHUNK_ROWS, PAGE_TOKENS, Pass, Sizes

TOKEN_BUCKETS = (16, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
LARGE = (6144, 8192)
"""Tokens of a pass with chunks and a graph, its decoding rows among them; the large ones have theirs later. Launched
one by one, a pass gives the interpreter up some hundred times, and beside a busy loop waits for it each time."""
FEW_CHUNKS = 32
"""Chunks of a pass with a graph."""
LONG_CHUNK = 2048
"""Fresh prompts of this mean length are launched one by one where they are many tokens: what attends them without their
pages is faster, and the device has work enough to hide the launches."""
MIXED_ROWS = (8, 32, 64, 128, 192, 256, 512)
EAGER_STEP = 64
"""Prompt tokens of a pass without a graph are padded to a multiple of this."""


class Ladder:
    def __init__(self, sizes: Sizes) -> None:
        self._rows = sizes.row_buckets
        most = self._rows[-1]
        mixed = (0, *(rows for rows in MIXED_ROWS if rows < most), most)
        buckets = [tokens for tokens in (*TOKEN_BUCKETS, *LARGE) if tokens <= sizes.prefill_tokens]
        self.chunk_sizes = {rows: _beside(rows, buckets) for rows in mixed}
        """Prompt tokens of graphs, by rows that decode beside them."""
        self._most_tokens = sizes.prefill_tokens
        self.max_samples = sizes.max_samples

    def offered(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """For `Capacity.chunk_sizes`: those of graphs, and the most that is launched one by one."""
        for rows, sizes in self.chunk_sizes.items():
            yield rows, tuple(sorted({*sizes, max(sizes[-1], self._most_tokens - _padded(rows))}))

    def size(
        self, num_rows: int, num_tokens: int, num_chunks: int, *, cuts: bool, full: bool, fresh: bool
    ) -> Pass:
        """The smallest pass that holds a batch."""
        if not num_tokens:
            return Pass(_least(self._rows, num_rows), 0, 0, cuts or full, full)
        rows = _least(self.chunk_sizes, num_rows)
        is_long = fresh and num_tokens > TOKEN_BUCKETS[-1] and num_tokens >= LONG_CHUNK * num_chunks
        if not is_long and num_chunks <= FEW_CHUNKS and num_tokens <= self.chunk_sizes[rows][-1]:
            return Pass(rows, _least(self.chunk_sizes[rows], num_tokens), FEW_CHUNKS, True, full)
        tokens = min(_padded(num_tokens), self._most_tokens)
        return Pass(_least((0, *self._rows), num_rows), tokens, CHUNK_ROWS, True, full, fresh)

    def first(self) -> Iterator[Pass]:
        """Graphs that are captured before the engine opens: without these a stream would stutter."""
        yield from self.mixed(later=False)
        yield from self.decoding()
        yield from self.decoding(cuts=True)

    def graphs(self) -> Iterator[Pass]:
        """All, in the order in which they are captured."""
        yield from self.first()
        yield from self.mixed(later=True)
        yield from self.decoding(full=True)

    def decoding(self, *, cuts: bool = False, full: bool = False) -> Iterator[Pass]:
        """From large to small, so that the small share the large ones' memory."""
        for rows in reversed(self._rows):
            yield Pass(rows, 0, 0, cuts or full, full)

    def mixed(self, *, later: bool) -> Iterator[Pass]:
        """Few enough to capture them all: sampled as if some row had cuts."""
        sizes = [(tokens, rows) for rows, many in self.chunk_sizes.items() for tokens in many]
        for tokens, rows in sorted(sizes, reverse=True):
            if (tokens + rows > TOKEN_BUCKETS[-1]) == later:
                yield Pass(rows, tokens, FEW_CHUNKS, True, False)

    def launched(self) -> Iterator[Pass]:
        """Of the passes without a graph, small ones of every kind: many prompts, and what adjusts logits."""
        for rows in (0, *self._rows):
            for tokens in (EAGER_STEP, 2 * EAGER_STEP, MAX_GATED_ROWS + EAGER_STEP):
                for fresh in (False, True):
                    yield self.size(
                        rows, min(tokens, self._most_tokens), CHUNK_ROWS, cuts=True, full=False, fresh=fresh
                    )
        for rows, many in self.chunk_sizes.items():
            yield Pass(rows, many[0], FEW_CHUNKS, True, True)

    def scored(self) -> Iterator[int]:
        """Numbers of a prompt's tokens that are scored at a time, one for each kernel that may compute their logits."""
        counts = {count for rows in ROW_BUCKETS for count in (rows, rows + 1)} | {self.max_samples}
        return (count for count in sorted(counts) if count <= self.max_samples)


def _beside(rows: int, buckets: list[int]) -> tuple[int, ...]:
    """What fills a bucket together with the rows, since products are computed in tiles of 128 tokens; and the small
    buckets themselves, of which the rows would leave less than half, or than a page."""
    least = max(rows, PAGE_TOKENS)
    return tuple(sorted({bucket - rows if bucket - rows >= least else bucket for bucket in buckets}))


def _padded(tokens: int) -> int:
    return -(-tokens // EAGER_STEP) * EAGER_STEP


def _least(buckets: Iterable[int], wanted: int) -> int:
    """Of ascending ones."""
    return next(bucket for bucket in buckets if bucket >= wanted)
