"""What each key uses now: open answers, sockets, and the tokens of the last minute.

Tokens are a bucket that refills all the time and may go into debt: an answer is admitted while something is left and
pays as it is generated, so the rate holds on average whatever the requests said they would need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from ...runtime.errors import InvalidField, QueueFull
from .keys import Key, KeyRing


class _Used:
    def __init__(self, tokens: float, since: float) -> None:
        self.answers = 0
        self.sockets = 0
        self.tokens_left = tokens
        self.since = since


class Quotas:
    """One per app, on its loop. `max_sockets` bounds the sockets of all keys, and of each that sets no bound."""

    def __init__(self, ring: KeyRing, *, max_sockets: int, clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._max_sockets = max_sockets
        self._num_sockets = 0
        self._used: dict[str, _Used] = {}

    def limits(self, name: str) -> Key | None:
        """Of the key; None for whoever needs none."""
        return self._ring.named(name)

    def enter(self, name: str, count: int = 1) -> None:
        """`count` answers open. Raises `QueueFull`, which says when to come back."""
        key = self._ring.named(name)
        used = self._refilled(name, key)
        if key is not None and key.concurrency is not None and used.answers + count > key.concurrency:
            raise QueueFull(f"the key {name!r} may have {key.concurrency} answers open at a time")
        if key is not None and key.tokens_per_minute is not None and used.tokens_left <= 0:
            wait_s = (1 - used.tokens_left) * 60 / key.tokens_per_minute
            message = f"the key {name!r} may use {key.tokens_per_minute} tokens a minute"
            raise QueueFull(message, retry_after_s=wait_s)
        used.answers += count

    def leave(self, name: str) -> None:
        """An answer has ended."""
        self._used[name].answers -= 1

    def charge(self, name: str, tokens: int) -> None:
        """Only what has a limit runs up a debt: a limit that is set later begins with a clean slate."""
        key = self._ring.named(name)
        if name in self._used and key is not None and key.tokens_per_minute is not None:
            self._used[name].tokens_left -= tokens

    def connected(self, name: str) -> AbstractContextManager[None]:
        """A socket, open from now until the context is left. Raises `QueueFull`."""
        key = self._ring.named(name)
        most = key.connections if key is not None and key.connections is not None else self._max_sockets
        used = self._refilled(name, key)
        if used.sockets >= most or self._num_sockets >= self._max_sockets:
            raise QueueFull(f"{used.sockets} sockets of this key are open, and {self._num_sockets} in all")
        used.sockets += 1
        self._num_sockets += 1
        return self._connected(used)

    @contextmanager
    def _connected(self, used: _Used) -> Iterator[None]:
        try:
            yield
        finally:
            used.sockets -= 1
            self._num_sockets -= 1

    def _refilled(self, name: str, key: Key | None) -> _Used:
        now = self._clock()
        rate = float(key.tokens_per_minute or 0) if key is not None else 0.0
        used = self._used.setdefault(name, _Used(rate, now))
        used.tokens_left = min(rate, used.tokens_left + (now - used.since) * rate / 60)
        used.since = now
        return used


def granted_s(priority: int, deadline_s: float | None, key: Key | None) -> float | None:
    """How long an answer may take, in seconds. Raises `InvalidField` where the key does not allow what is asked."""
    if key is None:
        return deadline_s
    if priority < key.highest_priority:
        raise InvalidField("priority", f"at least {key.highest_priority} with this key", priority)
    longest = key.longest_deadline_s
    if longest is not None and deadline_s is not None and deadline_s > longest:
        asked = f"{1000 * deadline_s:g} ms"
        raise InvalidField("deadline_s", f"at most {1000 * longest:g} ms with this key", asked)
    return longest if deadline_s is None else deadline_s
