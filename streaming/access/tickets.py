"""One-time tickets: how a page that may not know a key opens a socket. Its own server buys it one."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from ...runtime.errors import QueueFull
from ..principal import Principal
from .keys import digest_of

LIFE_S = 30.0
MAX_TICKETS = 4096
"""Bought and not used yet, of all keys together."""

PREFIX = "ticket_"


class _Ticket(msgspec.Struct, frozen=True):
    principal: Principal
    origin: str | None
    expires: float


class Tickets:
    """Each opens one socket, from the page that it was bought for, within `LIFE_S`. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[str, _Ticket] = {}

    def issue(self, principal: Principal, origin: str | None) -> str:
        """A ticket for sockets of `origin`; None is a client that is no browser. Raises `QueueFull`."""
        self._forget_old()
        if len(self._open) >= MAX_TICKETS:
            raise QueueFull(f"{MAX_TICKETS} tickets are unused, the most that may be", retry_after_s=LIFE_S)
        secret = PREFIX + secrets.token_urlsafe(24)
        self._open[digest_of(secret)] = _Ticket(principal, origin, self._clock() + LIFE_S)
        return secret

    def redeem(self, secret: str, origin: str | None) -> Principal | None:
        """Whom it was bought for; None if it is unknown, used, too old, or another page's. It is used up by this."""
        self._forget_old()
        ticket = self._open.pop(digest_of(secret[:100]), None)
        return ticket.principal if ticket is not None and ticket.origin == origin else None

    def _forget_old(self) -> None:
        """They were issued in the order in which they expire."""
        while self._open and (first := next(iter(self._open.items())))[1].expires <= self._clock():
            del self._open[first[0]]
