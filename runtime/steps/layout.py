"""A batch laid out for the forward pass: one flat list of tokens, in spans that attend together.

A chunk is a span of its own, cut where its scores would grow too large. Decode rows of similar length share a span.
Padding tokens join so that every matrix product has a size for which rows are known to be independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor

from .memory import PAGE_TOKENS
from .slots import Int64s, Slots

SCORES_PER_SPAN = 2**24
PADDING_PER_SPAN = 1024
"""Positions of padding that cost about as much as one more span."""


class Tile(msgspec.Struct, frozen=True):
    """Matrix products take between `least` and `most` rows at a time."""

    least: int
    most: int

    def padding(self, rows: int) -> int:
        """How many rows to add, so that the last piece has enough."""
        rest = rows % self.most
        return self.least - rest if 0 < rest < self.least else 0


@dataclass(frozen=True, slots=True)
class Span:
    """Rows that attend together: slots [rows], positions [rows, queries]."""

    slots: Int64s
    positions: Int64s


@dataclass(slots=True)
class Layout:
    """Arguments of `forward`, in its order; where a slot's last token stands."""

    tokens: Tensor
    positions: Tensor
    writes: Tensor
    spans: list[tuple[int, int]]
    tables: list[Tensor]
    masks: list[Tensor]
    sliding_masks: list[Tensor]
    last: dict[int, int]


def chunk_spans(slot: int, start: int, count: int, num_heads: int) -> list[Span]:
    """Spans of one chunk, in order of position."""
    most = max(16, SCORES_PER_SPAN // (num_heads * (start + count)))
    stops = [*range(start, start + count, most), start + count]
    return [
        Span(np.array([slot]), np.arange(first, stop, dtype=np.int64)[None])
        for first, stop in zip(stops, stops[1:], strict=False)
    ]


def decode_spans(slots: Int64s, positions: Int64s) -> list[Span]:
    """Spans of rows with one query each, sorted by length; a new span begins where padding would cost more."""
    order = np.argsort(positions, kind="stable")
    spans, first = [], 0
    for i in range(1, len(order) + 1):
        if (
            i < len(order)
            and (positions[order[i]] - positions[order[i - 1]]) * (i - first) <= PADDING_PER_SPAN
        ):
            continue
        members = order[first:i]
        spans.append(Span(slots[members], positions[members, None]))
        first = i
    return spans


class LayoutBuilder:
    """Builds layouts over one pool."""

    def __init__(self, slots: Slots, num_kv_heads: int, window: int | None, dtype: torch.dtype) -> None:
        self.slots, self.window, self.dtype = slots, window, dtype
        self.kv_heads = np.arange(2 * num_kv_heads, dtype=np.int64)  # keys, then values

    def build(self, spans: list[Span]) -> Layout:
        positions = np.concatenate([span.positions.ravel() for span in spans])
        owners = np.concatenate([np.repeat(span.slots, span.positions.shape[1]) for span in spans])
        pages = self.slots.pages[owners, positions // PAGE_TOKENS]
        page_heads = pages[:, None] * len(self.kv_heads) + self.kv_heads
        writes = page_heads * PAGE_TOKENS + (positions % PAGE_TOKENS)[:, None]
        ends = np.cumsum([span.positions.size for span in spans]).tolist()
        full, sliding = [self.mask(span, None) for span in spans], []
        if self.window is not None:
            sliding = [self.mask(span, self.window) for span in spans]
        return Layout(
            self.tokens(owners, positions),
            torch.from_numpy(positions),
            torch.from_numpy(writes.ravel()),
            list(zip([0, *ends], ends, strict=False)),
            [self.table(span) for span in spans],
            full,
            sliding or full,
            dict(zip(owners.tolist(), range(len(owners)), strict=True)),
        )

    def tokens(self, owners: Int64s, positions: Int64s) -> Tensor:
        pairs = zip(owners.tolist(), positions.tolist(), strict=True)
        return torch.tensor([self.slots.occupant(slot).tokens[position] for slot, position in pairs])

    def table(self, span: Span) -> Tensor:
        """Page-heads [2 * rows * kv_heads * pages]: all keys, then all values."""
        pages = self.slots.pages[span.slots, : _num_pages(span)]  # [rows, pages]
        keys_values = self.kv_heads.reshape(2, 1, -1, 1)
        return torch.from_numpy((pages[:, None] * len(self.kv_heads) + keys_values).ravel())

    def mask(self, span: Span, window: int | None) -> Tensor:
        """What is added to the scores [rows, queries, length]: 0 where a query sees a position, else -inf."""
        length = np.arange(_num_pages(span) * PAGE_TOKENS)
        hidden = length > span.positions[..., None]
        if window is not None:
            hidden |= length <= span.positions[..., None] - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype)
        return mask.masked_fill_(torch.from_numpy(hidden), float("-inf"))


def _num_pages(span: Span) -> int:
    return int(span.positions.max()) // PAGE_TOKENS + 1
