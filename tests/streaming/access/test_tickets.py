"""Tickets: once, in time, from the page that they were bought for."""

from __future__ import annotations

import pytest

from jitney.runtime.errors import QueueFull
from jitney.streaming.access import tickets
from jitney.streaming.access.tickets import LIFE_S, Tickets
from jitney.streaming.principal import Principal

ANN = Principal("key", "ann", "Be brief.")
PAGE = "https://app.example"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_opens_one_socket() -> None:
    office = Tickets(Clock())
    ticket = office.issue(ANN, PAGE)
    assert office.redeem(ticket, PAGE) == ANN
    assert office.redeem(ticket, PAGE) is None


@pytest.mark.parametrize(
    "origin", [None, "https://app.example.", "http://app.example", "https://evil.example"]
)
def test_another_page_cannot_use_it_and_uses_it_up(origin: str | None) -> None:
    office = Tickets(Clock())
    ticket = office.issue(ANN, PAGE)
    assert office.redeem(ticket, origin) is None
    assert office.redeem(ticket, PAGE) is None


def test_a_ticket_of_no_page_is_for_no_page() -> None:
    office = Tickets(Clock())
    assert office.redeem(office.issue(ANN, None), PAGE) is None
    assert office.redeem(office.issue(ANN, None), None) == ANN


@pytest.mark.parametrize(
    ("age_s", "is_good"), [(LIFE_S - 0.001, True), (LIFE_S, False), (LIFE_S * 1000, False)]
)
def test_it_lasts_thirty_seconds(age_s: float, is_good: bool) -> None:
    clock = Clock()
    office = Tickets(clock)
    ticket = office.issue(ANN, PAGE)
    clock.now = age_s
    assert (office.redeem(ticket, PAGE) == ANN) is is_good
    assert not office._open


def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "MAX_TICKETS", 2)
    clock = Clock()
    office = Tickets(clock)
    office.issue(ANN, PAGE)
    office.issue(ANN, PAGE)
    with pytest.raises(QueueFull) as refused:
        office.issue(ANN, PAGE)
    assert refused.value.retry_after_s == LIFE_S
    clock.now = LIFE_S
    office.issue(ANN, PAGE)


def test_what_was_never_sold_is_refused() -> None:
    office = Tickets(Clock())
    for made_up in ("", "ticket_", "ticket_x", "x" * 10**6, "\ud800"):
        assert office.redeem(made_up, None) is None
