"""Where every row is: waiting for a seat, running, or on its way out. The books of the scheduler, kept in balance."""

from __future__ import annotations

from bisect import insort
from math import inf
from operator import attrgetter

from .batch import Capacity, Seat
from .flight import Flight
from .seating import Seating
from .sequence import Sequence

BY_ORDER = attrgetter("order")


class Roster:
    """`waiting` and `running` are in order. `leaving` are rows that wait for the last launch that names them: ghosts,
    which have ended, and rows that are to be preempted, which still run."""

    def __init__(self, capacity: Capacity, seating: Seating, flight: Flight) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.leaving: list[Sequence] = []
        self.num_preempted = 0
        self._capacity, self._seating, self._flight = capacity, seating, flight
        self._by_id: dict[str, list[Sequence]] = {}
        self._next_deadline = inf

    def add(self, rows: list[Sequence]) -> None:
        """The choices of a request."""
        self._by_id[rows[0].request.id] = rows
        for row in rows:
            insort(self.waiting, row, key=BY_ORDER)
        self._next_deadline = min(self._next_deadline, rows[0].deadline)

    def find(self, request_id: str) -> list[Sequence]:
        """The choices of a request that have not ended."""
        return list(self._by_id.get(request_id, ()))

    def late(self, now: float) -> list[Sequence]:
        """The rows whose deadline has passed: to be ended, all of them."""
        if now < self._next_deadline:
            return []
        rows = self.running + self.waiting
        self._next_deadline = min([row.deadline for row in rows if row.deadline > now], default=inf)
        return [row for row in rows if row.deadline <= now]

    def seat(self) -> list[Seat]:
        """Seat rows in order while slots and pages last, with a page to spare for each row that already runs."""
        seats: list[Seat] = []
        for row in list(self.waiting) if self._seating.free_slots else ():
            if not self._seating.free_slots:
                break
            if self._seating.follows(row):
                continue
            alone = len(self._seating.free_slots) == self._capacity.max_rows
            seat = self._seating.seat(row, None if alone else len(self.running))
            if seat is None:
                break
            self.waiting.remove(row)
            insort(self.running, row, key=BY_ORDER)
            seats.append(seat)
        return seats

    def preempt(self, row: Sequence) -> None:
        """Give the row's pages back and compute it again later. One in flight collects that first."""
        self.num_preempted += 1
        self._flight.unsettle(row)
        row.preempting = True
        self.leaving.append(row)
        self.release()

    def end(self, row: Sequence, *, keep: bool) -> None:
        """Take a row out. Its slot and pages wait for the launches in flight; `keep`: others may find what is in
        them."""
        row.ended = True
        rows = self._by_id[row.request.id]
        rows.remove(row)
        if not rows:
            del self._by_id[row.request.id]
        if row.slot < 0:
            self.waiting.remove(row)
            return
        self.running.remove(row)
        self._flight.unsettle(row)
        if keep:
            self._seating.publish(row)
        if row.preempting:
            return
        if self._flight.names(row):
            self.leaving.append(row)
        else:
            self._seating.leave(row)

    def release(self) -> None:
        """Let go of the rows that no launch names any more."""
        if not self.leaving:
            return
        for row in [row for row in self.leaving if not self._flight.names(row)]:
            self.leaving.remove(row)
            if not row.ended:
                self._seating.publish(row)
            self._seating.leave(row)
            if not row.ended:
                self.running.remove(row)
                row.unseat()
                insort(self.waiting, row, key=BY_ORDER)
