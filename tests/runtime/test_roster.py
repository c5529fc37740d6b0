"""Who waits, runs and leaves: order, deadlines, and slots that come back when no launch names their row any more."""

from __future__ import annotations

import pytest
from books import check_books

from jitney.runtime.batch import Capacity, RowSampling
from jitney.runtime.flight import Flight, Single
from jitney.runtime.messages import Generate
from jitney.runtime.roster import Roster
from jitney.runtime.seating import Seating
from jitney.runtime.sequence import Sequence

CAPACITY = Capacity(9, 4, 2)


class Books:
    """A roster with its seats and its flight."""

    def __init__(self) -> None:
        self.seating = Seating(CAPACITY, prefix_cache=True, secret=b"")
        self.flight = Flight(1)
        self.roster = Roster(CAPACITY, self.seating, self.flight)

    def add(
        self, name: str, *, prompt: int = 5, deadline: float | None = None, arrival: float = 0.0
    ) -> Sequence:
        request = Generate(
            id=name,
            prompt=tuple(range(prompt)),
            sampling=RowSampling(seed=0),
            max_tokens=9,
            deadline=deadline,
            arrival=arrival,
        )
        row = Sequence(request, request.sampling, self.seating.root(request), None)
        self.roster.add([row])
        return row


@pytest.mark.parametrize(
    ("deadline", "late"), [(None, False), (5.0, True), (4.9, True), (5.1, False), (0.0, True)]
)
def test_late_from_the_deadline_on(deadline: float | None, late: bool) -> None:
    books = Books()
    row = books.add("a", deadline=deadline)
    assert books.roster.late(5.0) == [row] * late


def test_each_deadline_is_noticed_once_it_is_there() -> None:
    books = Books()
    rows = [books.add(str(at), deadline=at) for at in (3.0, 1.0, 2.0)]
    for now, row in ((1.0, rows[1]), (2.5, rows[2]), (3.0, rows[0])):
        assert books.roster.late(now - 0.6) == []
        assert books.roster.late(now) == [row]
        books.roster.end(row, keep=True)


def test_seats_go_by_order_while_they_last() -> None:
    books = Books()
    rows = [books.add(name, arrival=at) for name, at in (("late", 3.0), ("first", 1.0), ("second", 2.0))]
    books.roster.seat()
    assert books.roster.running == [rows[1], rows[2]] and books.roster.waiting == [rows[0]]
    check_books(books.roster)


@pytest.mark.parametrize("preempted", [False, True])
def test_a_row_in_flight_gives_its_seat_back_with_its_last_launch(preempted: bool) -> None:
    books = Books()
    row = books.add("a")
    books.roster.seat()
    books.flight.launch([Single(row, 5, True)])
    if preempted:
        books.roster.preempt(row)
    else:
        books.roster.end(row, keep=True)
    books.roster.release()
    check_books(books.roster)
    assert row.slot >= 0 and books.roster.leaving == [row]
    books.flight.commit()
    books.roster.release()
    check_books(books.roster)
    assert books.seating.pages.num_used == 0 and books.roster.waiting == [row] * preempted


@pytest.mark.parametrize(("keep", "found"), [(True, 4), (False, 0)])
def test_pages_of_a_row_that_failed_are_not_found_again(keep: bool, found: int) -> None:
    books = Books()
    row = books.add("a")
    books.roster.seat()
    books.flight.launch([Single(row, 5, True)])
    books.flight.commit()
    row.planned = 5
    row.advance(5, True, (9,))
    books.roster.end(row, keep=keep)
    books.add("b")
    (seat,) = books.roster.seat()
    assert seat.start == found
