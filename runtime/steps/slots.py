"""What a step remembers between batches, by slot: pages, tokens, how far they are computed, how to sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..batch import RowSampling, Seat

Int64s = NDArray[np.int64]


@dataclass(slots=True)
class Occupant:
    """The row in a slot. Positions [0, computed) of `tokens` are in the cache."""

    tokens: list[int]
    prompt_len: int
    computed: int
    sampling: RowSampling


class Slots:
    """`pages` [max_rows + 1, pages of one context]. Entries past a row's own pages are zero, so that a table may be
    read past its end. The last slot, `idle`, belongs to padding tokens: its pages are all page 0."""

    def __init__(self, max_rows: int, pages_per_row: int) -> None:
        self.max_rows = max_rows
        self.pages: Int64s = np.zeros((max_rows + 1, pages_per_row), dtype=np.int64)
        self.num_pages = [0] * max_rows
        self.occupants: list[Occupant | None] = [None] * max_rows
        self.occupants.append(Occupant([0], 1, 0, RowSampling(seed=0)))

    @property
    def idle(self) -> int:
        return self.max_rows

    def seat(self, seat: Seat) -> None:
        self.pages[seat.slot] = 0
        self.num_pages[seat.slot] = 0
        self.grow(seat.slot, seat.pages)
        self.occupants[seat.slot] = Occupant(list(seat.tokens), seat.prompt_len, seat.start, seat.sampling)

    def grow(self, slot: int, pages: tuple[int, ...]) -> None:
        end = self.num_pages[slot] + len(pages)
        self.pages[slot, self.num_pages[slot] : end] = pages
        self.num_pages[slot] = end

    def occupant(self, slot: int) -> Occupant:
        occupant = self.occupants[slot]
        assert occupant is not None, f"slot {slot} is empty"
        return occupant
