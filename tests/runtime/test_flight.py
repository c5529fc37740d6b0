"""Which launches name a row, what they may still bring, and when a steady row must be looked at."""

from __future__ import annotations

from jitney.runtime.batch import RowSampling
from jitney.runtime.flight import Flight, Single
from jitney.runtime.messages import Generate
from jitney.runtime.sequence import Sequence


def row(name: str = "r", ends: tuple[int, ...] = ()) -> Sequence:
    sampling = RowSampling(seed=0, end_token_ids=ends)
    request = Generate(id=name, prompt=(1, 2, 3), sampling=sampling, max_tokens=100)
    return Sequence(request, sampling, b"root", None)


def prompted(flight: Flight, *rows: Sequence) -> None:
    """Launch and commit the chunks that end their prompts."""
    flight.launch([Single(row, 3, True) for row in rows])
    flight.commit()
    for each in rows:
        each.advance(3, True, (9,))


def test_what_is_in_flight_counts_until_it_is_committed() -> None:
    flight, made = Flight(2), row()
    flight.launch([Single(made, 3, True)])
    assert flight.names(made) and made.decoding and flight.reach(made) == 3 + 2
    flight.commit()
    made.advance(3, True, (9,))
    assert not flight.names(made) and flight.reach(made) == 4
    assert flight.settle(made, 9)
    for launches in (1, 2):
        assert made not in flight.woken()
        flight.launch([])
        assert flight.names(made) and flight.reach(made) == 4 + 2 * launches
    assert made in flight.woken(), "a third launch could take it past nine"


def test_a_row_that_would_pass_its_length_does_not_settle() -> None:
    flight, made = Flight(2), row()
    prompted(flight, made)
    assert not flight.settle(made, 5) and flight.settle(made, 6)


def test_a_row_that_leaves_is_not_woken_and_its_launches_still_name_it() -> None:
    flight, made, other = Flight(1), row("a"), row("b")
    prompted(flight, made, other)
    assert flight.settle(made, 6) and flight.settle(other, 50)
    flight.launch([])
    flight.unsettle(made)
    flight.launch([])
    assert not flight.woken() and flight.cohort.rows == (other,)
    flight.commit()
    assert not flight.names(made) and flight.names(other)
    assert flight.reach(made) == 4


def test_a_cohort_is_shared_until_the_set_changes() -> None:
    flight, made, other = Flight(1), row("a", (7,)), row("b", (8,))
    prompted(flight, made, other)
    flight.settle(made, 50)
    first = flight.launch([])
    flight.settle(made, 60)
    assert flight.launch([]) is first and first.ends == {7}
    flight.settle(other, 50)
    assert flight.launch([]).ends == {7, 8} and first.rows == (made,)


def test_what_is_forgotten_is_in_flight_no_more() -> None:
    flight, made = Flight(1), row()
    flight.launch([Single(made, 3, True)])
    flight.forget()
    assert not flight.names(made) and not flight.num_launches
