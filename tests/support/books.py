"""The books of a scheduler and of its pages, in balance whatever came before."""

from __future__ import annotations

from jitney.runtime.pages import PagePool
from jitney.runtime.roster import Roster
from jitney.runtime.scheduler import Scheduler


def check_books(books: Scheduler | Roster) -> None:
    """Raise AssertionError unless every row, slot and page is where it belongs, and nowhere else."""
    roster = books._roster if isinstance(books, Scheduler) else books
    seating, flight = roster._seating, roster._flight
    check_pages(seating.pages)
    ghosts = [row for row in roster.leaving if row.ended]
    seated = roster.running + ghosts
    slots = sorted([row.slot for row in seated] + seating.free_slots)
    assert slots == list(range(roster._capacity.max_rows)), "a slot is lost or doubled"
    held = [page for row in seated for page in row.pages] + seating.pins.pages
    assert len(set(held)) == seating.pages.num_used, "a page is used by no row"
    assert all(not row.pages for row in roster.waiting), "a waiting row holds pages"
    assert all(map(flight.names, roster.leaving)), "a row that nobody waits for"
    steady = flight.cohort.rows
    assert set(steady) == {row for row in roster.running if row.wake}, "a row is steady that does not run"
    for row in roster.running:
        room = len(row.pages) * roster._capacity.page_size
        assert row.computed <= room and row.filled <= row.planned <= room, "positions out of order"
        assert len(row.tokens) < row.limit or row.request.pin, "a row past its limit"
        if row.wake:
            assert flight.reach(row) <= min(room + 1, row.limit - 1), "a row overslept"
    open_rows = [row for rows in roster._by_id.values() for row in rows]
    assert sorted(map(id, open_rows)) == sorted(map(id, roster.running + roster.waiting)), "a row is lost"


def check_pages(pool: PagePool) -> None:
    """Raise AssertionError unless every page is in exactly one state."""
    used = {page for page in range(1, pool.num_pages) if pool._refs[page] > 0}
    free, cached = set(pool._free), set(pool._cached)
    assert len(free) == len(pool._free), "a page is free twice"
    assert not (used & free or used & cached or free & cached), "a page is in two states"
    assert len(used) + len(free) + len(cached) == pool.num_pages - 1, "a page is in no state"
    assert cached <= pool._key_of.keys(), "a cached page has no key"
    assert {pool._key_of[page]: page for page in pool._key_of} == pool._page_of, "keys and pages disagree"
