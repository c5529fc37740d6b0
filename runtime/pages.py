"""KV pages by number: free, in use (counted references), or cached (no reference, still holding a known prefix)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from .layout import CACHED, FREE, USED


class PagePool:
    """Hands out pages [1, num_pages); page 0 belongs to the step.

    A published page is found again by its key. When its last reference goes it stays, cached, until a `take` needs
    the room; the page that was given back longest ago goes first.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, 0, -1))
        self._refs = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_available(self) -> int:
        """Pages that `take` could hand out now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_pages - 1 - self.num_available

    def take(self, count: int) -> list[int]:
        """`count` pages with one reference each. The caller has checked `num_available`."""
        taken = [self._take_one() for _ in range(count)]
        for page in taken:
            self._refs[page] = 1
        return taken

    def share(self, page: int) -> None:
        """One more reference to a page that `find` returned."""
        if self._refs[page] == 0:
            del self._cached[page]
        self._refs[page] += 1

    def give_back(self, pages: Iterable[int]) -> None:
        """Drop one reference of each. Give a row's pages in order of position: its tail is then evicted first."""
        for page in reversed(list(pages)):
            self._refs[page] -= 1
            assert self._refs[page] >= 0, f"page {page} given back twice"
            if self._refs[page] == 0:
                if page in self._key_of:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def publish(self, page: int, key: bytes) -> None:
        """Make a full page findable. A key that is known already keeps its first page."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def find(self, key: bytes) -> int | None:
        return self._page_of.get(key)

    def is_cached(self, page: int) -> bool:
        """Whether sharing the page would take it out of `num_available`."""
        return self._refs[page] == 0

    def states(self) -> bytes:
        """For each page `FREE`, `CACHED` or `USED`; page 0 is used by the step."""
        states = bytearray(USED if refs else FREE for refs in self._refs)
        for page in self._cached:
            states[page] = CACHED
        states[0] = USED
        return bytes(states)

    def _take_one(self) -> int:
        if self._free:
            return self._free.pop()
        page, _ = self._cached.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page
