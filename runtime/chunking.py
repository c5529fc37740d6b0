"""How many prompt tokens a launch takes: prompts begin soon, and rows that decode beside them keep their pace."""

from __future__ import annotations

from collections.abc import Collection

from .batch import Capacity
from .sequence import Sequence

DRAIN = 32
"""Prompts that wait beside decoding rows are spread over so many launches."""
CROWD = 8
"""More rows that wait than so many, and than decode, are a crowd: those go first, in launches of any size."""
MOST_BESIDE, FEW = 64, 1 / 8
"""Beside up to so many decoding rows a crowd goes first until it is a small share of them; beside more, while it is a
crowd."""
SMALL_SHARE = 1 / 8
"""A launch beside decoding rows of this share of the largest is as fast a token: then no crowd has to go first."""


class Chunking:
    """Of one scheduler. `max_batch_tokens` overrides both of the step's own bounds."""

    def __init__(self, capacity: Capacity, max_batch_tokens: int | None) -> None:
        self._capacity = capacity
        self._most = max_batch_tokens or capacity.max_batch_tokens
        self._mixed = max_batch_tokens or capacity.mixed_tokens
        self._has_crowds = self._mixed < self._most * SMALL_SHARE
        self._is_crowded = False

    def budget(self, decoding: int, filling: Collection[Sequence], waiting: Collection[Sequence]) -> int:
        """Of a launch with `decoding` rows that decode and those of `filling`, which do not yet, while `waiting` have
        no seat: at least a page, so that prompts always advance. Where more is left to compute they fill a bucket."""
        is_crowded = self._crowded(len(filling), len(waiting), decoding)
        left = sum(len(row.tokens) - row.planned for row in filling)
        rows, sizes = self._capacity.beside(decoding)
        budget = self._most - rows
        if decoding and not is_crowded:
            backlog = left + sum(len(row.tokens) for row in waiting)
            budget = min(budget, max(self._mixed, backlog // DRAIN))
        if left > budget:
            budget = max((size for size in sizes if size <= budget), default=budget)
        return max(budget, self._capacity.page_size)

    def _crowded(self, filling: int, waiting: int, decoding: int) -> bool:
        """Rows that wait for a seat make a crowd, and do not keep it up: there is always one."""
        stays = self._is_crowded and decoding <= MOST_BESIDE and filling >= max(1, decoding * FEW)
        self._is_crowded = self._has_crowds and (stays or filling + waiting > max(decoding, CROWD))
        return self._is_crowded
