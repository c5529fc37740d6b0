"""What is launched and not committed yet: the rows that launches name, and what these may still bring.

Launches have serials from 1 on, and are committed in their order. Rows that decode are *steady* as long as nothing
about them is to be decided: every launch names them, and nobody looks at them before their `wake`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from .sequence import Sequence


class Cohort:
    """The steady rows of a launch, in columns: made when the set changes, and shared by the launches until then."""

    __slots__ = ("ends", "names", "pushes", "rows", "slots")

    def __init__(self, rows: Iterable[Sequence]) -> None:
        self.rows = tuple(rows)
        self.slots = tuple([row.slot for row in self.rows])
        self.names = tuple([row.name for row in self.rows])
        self.pushes = [row.push for row in self.rows]
        ends = {row.sampling.end_token_ids for row in self.rows}
        self.ends = frozenset([token for ids in ends for token in ids])


class Single(NamedTuple):
    """A row in a launch by itself: a chunk of `length` positions, or a decode where that is 0."""

    row: Sequence
    length: int
    samples: bool


class Flight:
    """`latest` and `committed` are serials. A decoding launch gives a row at most `most` tokens."""

    def __init__(self, most: int) -> None:
        self.latest = self.committed = 0
        self._most = most
        self._launches: deque[tuple[Cohort, list[Single]]] = deque()
        self._steady: dict[Sequence, None] = {}
        self._wakes: dict[int, set[Sequence]] = {}
        self._cohort: Cohort | None = None

    @property
    def num_launches(self) -> int:
        return len(self._launches)

    @property
    def num_steady(self) -> int:
        return len(self._steady)

    @property
    def cohort(self) -> Cohort:
        """The rows that are steady now."""
        if self._cohort is None:
            self._cohort = Cohort(self._steady)
        return self._cohort

    def names(self, row: Sequence) -> bool:
        """Whether a launch in flight names the row."""
        return (self.latest if row.wake else row.last) > self.committed

    def reach(self, row: Sequence) -> int:
        """The most tokens that a decoding row may have once all launches are committed."""
        last = self.latest if row.wake else row.last
        return len(row.tokens) + self._most * max(0, last - max(self.committed, row.since))

    def settle(self, row: Sequence, length: int) -> bool:
        """Make a decoding row steady up to the last launch after which it has at most `length` tokens for certain.
        False if that is not the next one."""
        launches = (length - self.reach(row)) // self._most
        if launches <= 0:
            return False
        if row not in self._steady:
            self._steady[row] = None
            self._cohort = None
        row.wake = self.latest + launches + 1
        self._wakes.setdefault(row.wake, set()).add(row)
        return True

    def unsettle(self, row: Sequence) -> None:
        """Steady no more, if it was: the launches so far still name it, the next one need not."""
        if row.wake:
            del self._steady[row]
            self._wakes.get(row.wake, set()).discard(row)
            row.wake, row.last = 0, self.latest
            self._cohort = None

    def woken(self) -> set[Sequence]:
        """The steady rows that the next launch must look at: to settle or to unsettle."""
        return self._wakes.pop(self.latest + 1, set())

    def launch(self, singles: list[Single]) -> Cohort:
        """The next launch names these, and the steady rows."""
        for row, _, samples in singles:
            if samples and not row.decoding:
                row.decoding, row.since = True, self.latest
            row.last = self.latest + 1
        self.latest += 1
        self._launches.append((self.cohort, singles))
        return self.cohort

    def commit(self) -> tuple[Cohort, list[Single]]:
        """The oldest launch is collected."""
        self.committed += 1
        return self._launches.popleft()

    def forget(self) -> None:
        """Nothing in flight will be committed."""
        self._launches.clear()
        self.committed = self.latest
