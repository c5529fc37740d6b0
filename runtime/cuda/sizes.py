"""How large the step's device memory is, in elements, before it is allocated. No torch: `jitney plan` reads it."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import msgspec

from ..kernels.workspace import Widths
from ..model.config import ModelConfig

PAGE_TOKENS = 64
ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 208, 240, 256, 320, 384, 448, 512)
"""No 224: an H100's products of 224 rows take longer than of 240."""
CHUNK_ROWS = 64
"""Chunks of one forward pass; a batch with more is run in several."""
PREFILL_FLOPS = 4e12
"""Arithmetic of the prompt tokens that one launch takes beside some decoding rows: some 8 ms on an H100."""
REGION_WORDS = 64
"""Regions of the arena begin at multiples of this."""


class Sizes(msgspec.Struct, frozen=True):
    """`prefill_tokens` and `max_rows` bound one forward pass; `num_pages` counts page 0, the step's own."""

    context: int
    max_rows: int
    prefill_tokens: int
    num_pages: int

    @property
    def pages_per_row(self) -> int:
        return -(-self.context // PAGE_TOKENS)

    @property
    def num_slots(self) -> int:
        """One more than rows: the last belongs to padding."""
        return self.max_rows + 1

    @property
    def max_tokens(self) -> int:
        return self.row_buckets[-1] + self.prefill_tokens

    @property
    def max_samples(self) -> int:
        """Rows of logits: every decoding row, and the last token of every chunk."""
        return self.row_buckets[-1] + CHUNK_ROWS

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Sizes of decode batches that have a graph; the last holds every row."""
        return (*(bucket for bucket in ROW_BUCKETS if bucket < self.max_rows), self.max_rows)


class Pass(NamedTuple):
    """A pass's size: `rows` decode, `tokens` prompt tokens follow them in at most `chunks` chunks, padding included.
    `cuts`: some row samples with top_k, top_p or min_p. `full`: some row's logits are adjusted, or its
    log-probabilities asked for. `fresh`: every chunk starts at position 0."""

    rows: int
    tokens: int
    chunks: int
    cuts: bool
    full: bool
    fresh: bool = False

    @property
    def num_tokens(self) -> int:
        return self.rows + self.tokens

    @property
    def num_samples(self) -> int:
        return self.rows + self.chunks


def buffer_shapes(model: ModelConfig, sizes: Sizes) -> dict[str, tuple[int, int]]:
    """What a pass makes on its way, in the model's own type: made once, used by every layer and every pass."""
    tokens, heads = sizes.max_tokens, model.num_heads + 2 * model.num_kv_heads
    return {
        "x": (tokens, model.hidden_size),
        "qkv": (tokens, heads * model.head_dim),
        "attended": (tokens, model.num_heads * model.head_dim),
        "logits": (sizes.max_samples, model.vocab_size),
    }


def slot_regions(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Of the arena, in words: what is known of each slot, and of the next pass."""
    return {
        "tables": (sizes.num_slots, sizes.pages_per_row),
        "positions": (sizes.num_slots,),
        "last_tokens": (sizes.num_slots,),
        "rows": (1, sizes.row_buckets[-1]),
        "prompt": (1, sizes.prefill_tokens),
        "chunks": (5, CHUNK_ROWS),
        "counter": (1,),
    }


def region_words(shape: Iterable[int]) -> int:
    return -(-prod(shape) // REGION_WORDS) * REGION_WORDS


def linear_widths(model: ModelConfig, *, narrow: bool) -> Widths:
    """Of a layer's rows; `narrow`: they go into its products with eight bits."""
    hidden, inner = model.hidden_size, model.intermediate_size
    ups = (2 if model.gated_mlp else 1) * inner
    if not narrow:
        return Widths(normed=hidden, activated=inner, ups=ups)
    return Widths(ups=max(ups, hidden), narrow=max(hidden, inner, model.num_heads * model.head_dim))


def mixed_tokens(model: ModelConfig, most: int) -> int:
    """Prompt tokens that may run beside decoding rows without holding those up for long."""
    dim, hidden = model.head_dim, model.hidden_size
    attention = hidden * dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    layer = attention + hidden * model.intermediate_size * (3 if model.gated_mlp else 2)
    tokens = int(PREFILL_FLOPS / (2 * layer * model.num_layers))
    return min(most, max(4 * PAGE_TOKENS, tokens // PAGE_TOKENS * PAGE_TOKENS))


def page_elements(model: ModelConfig) -> int:
    """Keys and values of one page in all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * PAGE_TOKENS
