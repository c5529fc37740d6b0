"""Slots and pages: who sits where, what a row shares with others, what it leaves behind for those who come later."""

from __future__ import annotations

from .batch import Capacity, Seat
from .layout import Layout, Seated
from .messages import Generate
from .pages import PagePool
from .pins import Pins
from .prefix import PrefixHasher
from .sequence import Sequence

PINNED_SHARE = 4
"""One page in so many may be held for warm-ups."""


class Seating:
    """Owned by the scheduler. A row that `seat` took in holds its slot and pages until `leave`."""

    def __init__(self, capacity: Capacity, *, prefix_cache: bool, secret: bytes) -> None:
        self.capacity = capacity
        self.pages = PagePool(capacity.num_pages)
        self.pins = Pins(self.pages, capacity.num_pages // PINNED_SHARE)
        self.free_slots = list(range(capacity.max_rows - 1, -1, -1))
        self.num_queried = self.num_hit = 0
        self._rows: dict[int, Sequence] = {}
        self._prefix_cache = prefix_cache
        self._hasher = PrefixHasher(secret, capacity.page_size)

    def root(self, request: Generate) -> bytes:
        """Where the chain of a request's page names begins. Without the prefix cache it is the request's own, so
        that its choices still share its prompt."""
        shared = self._prefix_cache and request.use_prefix_cache
        return self._hasher.root(b"salt:" + request.salt if shared else b"only:" + request.id.encode())

    def follows(self, row: Sequence) -> bool:
        """Whether a further choice should wait for choice 0 to write the prompt's pages."""
        leader = row.leader
        if leader is None or leader.ended:
            return False
        return leader.computed < (row.prompt_len - 1) // self.capacity.page_size * self.capacity.page_size

    def seat(self, row: Sequence, spare: int | None) -> Seat | None:
        """Give the row a slot and pages for all its tokens. None: not with `spare` pages left over for others; with
        `spare` None there are no others, and it always fits: pins give way."""
        shared = self._find_prefix(row)
        fresh = self.num_pages(len(row.tokens)) - len(shared)
        while fresh + self._num_cached(shared) + (spare or 0) > self.pages.num_available:
            if spare is not None:
                return None
            self.pins.release_oldest()
        for page in shared:
            self.pages.share(page)
        row.pages = shared + self.pages.take(fresh)
        row.slot = self.free_slots.pop()
        self._rows[row.slot] = row
        row.planned = row.filled = len(shared) * self.capacity.page_size
        self.num_queried += len(row.tokens)
        self.num_hit += row.filled
        if row.cached_tokens is None:
            row.cached_tokens = row.unreported_cached = row.filled
        return row.seat()

    def publish(self, row: Sequence) -> None:
        """Make a row's full pages findable: every position written, every token committed."""
        reach = min(row.computed, len(row.tokens))
        self._hasher.extend(row.keys, row.tokens, reach)
        full = reach // self.capacity.page_size
        for index in range(row.num_published, full):
            self.pages.publish(row.pages[index], row.keys[index + 1])
        row.num_published = max(row.num_published, full)

    def has_room(self, count: int) -> bool:
        """Whether so many pages can be taken for a row that is seated: pins give way to it."""
        while count > self.pages.num_available and self.pins.release_oldest():
            pass
        return count <= self.pages.num_available

    def pin(self, row: Sequence) -> None:
        """Keep the full pages of a prompt that is done, if it was a warm-up, for those who continue it: the pages that
        are found, which another row may have computed at the same time."""
        if row.request.pin and self._prefix_cache and row.request.use_prefix_cache:
            found = map(self.pages.find, row.keys[1 : row.num_published + 1])
            self.pins.pin(row.request.id, [page for page in found if page is not None])

    def leave(self, row: Sequence) -> None:
        """Take the slot and the pages back. No launch in flight may name the row."""
        del self._rows[row.slot]
        self.pages.give_back(row.pages)
        self.free_slots.append(row.slot)

    def _num_cached(self, pages: list[int]) -> int:
        """How many of them would leave `num_available` when shared."""
        return sum(1 for page in pages if self.pages.is_cached(page))

    def layout(self) -> Layout:
        """Who sits where, and what each page holds."""
        rows = tuple(Seated.of(row) for row in self._rows.values())
        return Layout(self.capacity.max_rows, self.capacity.page_size, rows, self.pages.states())

    def num_pages(self, length: int) -> int:
        return -(-length // self.capacity.page_size)

    def _find_prefix(self, row: Sequence) -> list[int]:
        """Pages of the longest known prefix; at least one token is left to compute."""
        if row.wants_prompt_scores:
            return []
        reach = len(row.tokens) - 1
        self._hasher.extend(row.keys, row.tokens, reach)
        found: list[int] = []
        for key in row.keys[1 : reach // self.capacity.page_size + 1]:
            page = self.pages.find(key)
            if page is None:
                break
            found.append(page)
        return found
