"""KV pages that warm-ups hold after they are over: a budget of their own, the oldest goes first."""

from __future__ import annotations

from collections.abc import Sequence

from .pages import PagePool


class Pins:
    """Owned by the scheduler, like the pool. Each pin is one reference to each of its pages."""

    def __init__(self, pool: PagePool, max_pages: int) -> None:
        self._pool = pool
        self._max_pages = max_pages
        self._pins: dict[str, list[int]] = {}
        self.num_pages = 0
        """Pages that pins hold, those of several counted several times."""

    @property
    def pages(self) -> list[int]:
        return [page for pages in self._pins.values() for page in pages]

    def pin(self, name: str, pages: Sequence[int]) -> None:
        """Hold on to as many of the first pages as the budget allows, at the cost of the oldest pins."""
        held = list(pages[: self._max_pages])
        while self.num_pages + len(held) > self._max_pages:
            self.release_oldest()
        for page in held:
            self._pool.share(page)
        self._pins[name] = held
        self.num_pages += len(held)

    def release(self, name: str) -> None:
        """Unknown names are left alone: their pin gave way to another."""
        held = self._pins.pop(name, [])
        self._pool.give_back(held)
        self.num_pages -= len(held)

    def release_oldest(self) -> bool:
        """False if there is none."""
        if self._pins:
            self.release(next(iter(self._pins)))
            return True
        return False
