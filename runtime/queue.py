"""Requests that wait for a seat. Pure, owned by the loop: bounds, priority classes, fair share, deadlines.

Order: priority class (lower first), then the user who was served the fewest tokens, then arrival. Served tokens are
prompt and generated tokens alike (the virtual token counter of Sheng et al., "Fairness in serving large language
models", OSDI 2024): a user who comes back after a pause starts level with the least served of those who are active,
so neither a past heavy user starves nor an idle one saves up.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

from .errors import QueueFull
from .messages import Generate

IDLE_USERS = 1024
"""Counters of idle users that are kept: of those who were served most."""


class RequestQueue:
    """`push` refuses at once what is over a bound; `pop` gives the next to seat."""

    def __init__(self, *, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._classes: dict[int, dict[str, OrderedDict[str, Generate]]] = {}
        self._waiting: dict[str, Generate] = {}
        self._active: dict[str, int] = {}
        self._served: dict[str, int] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_deadline(self) -> float | None:
        """The earliest deadline of a waiting request."""
        while self._deadlines and not self._is_waiting(*self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def push(self, request: Generate, *, retry_after_s: float = 1.0) -> None:
        """Raises `QueueFull` with the bound that was met."""
        if len(self._waiting) >= self._max_requests:
            raise QueueFull(
                f"{len(self._waiting)} requests are waiting, the most that may", retry_after_s=retry_after_s
            )
        tokens = len(request.prompt)
        if self._waiting and self._num_tokens + tokens > self._max_tokens:
            message = (
                f"{self._num_tokens} prompt tokens are waiting; {tokens} more would pass {self._max_tokens}"
            )
            raise QueueFull(message, retry_after_s=retry_after_s)
        self._join(request.user)
        self._waiting[request.id] = request
        if request.deadline is not None:
            self._remember_deadline(request.deadline, request.id)
        self._num_tokens += tokens
        users = self._classes.setdefault(request.priority, {})
        users.setdefault(request.user, OrderedDict())[request.id] = request

    def pop(self) -> Generate | None:
        """The next request. Its user stays active until `leave`."""
        if not self._classes:
            return None
        users = self._classes[min(self._classes)]
        first = {name: next(iter(waiting.values())) for name, waiting in users.items()}
        request = min(first.values(), key=lambda r: (self._served[r.user], r.arrival, r.user))
        self._remove(request)
        return request

    def charge(self, user: str, tokens: int) -> None:
        """Count tokens that a user's requests were served."""
        self._served[user] = self._served.get(user, 0) + tokens

    def leave(self, user: str) -> None:
        """One request of the user, waiting or seated, is over."""
        self._active[user] -= 1
        if not self._active[user]:
            del self._active[user]
        if len(self._served) > 2 * (len(self._active) + IDLE_USERS):
            idle = [name for name in self._served if name not in self._active]
            keep = heapq.nlargest(IDLE_USERS, idle, key=self._served.__getitem__)
            self._served = {name: self._served[name] for name in [*self._active, *keep]}

    def position(self, request_id: str) -> int:
        """How many of the better or the same priority came before it, counted from 1; 0 if it is not waiting. Fair
        share may let others pass."""
        mine = self._waiting.get(request_id)
        if mine is None:
            return 0
        position, is_behind = 1, False
        for other in self._waiting.values():
            is_behind = is_behind or other is mine
            position += other.priority < mine.priority + (not is_behind)
        return position

    def remove(self, request_id: str) -> bool:
        """Take a waiting request out. False if it is not waiting. Its user is still active until `leave`."""
        request = self._waiting.get(request_id)
        if request is not None:
            self._remove(request)
        return request is not None

    def expire(self, now: float) -> list[Generate]:
        """Take out the requests whose deadline has passed."""
        late: list[Generate] = []
        while (deadline := self.next_deadline) is not None and deadline <= now:
            late.append(self._waiting[heapq.heappop(self._deadlines)[1]])
            self._remove(late[-1])
        return late

    def _is_waiting(self, deadline: float, request_id: str) -> bool:
        request = self._waiting.get(request_id)
        return request is not None and request.deadline == deadline

    def _remember_deadline(self, deadline: float, request_id: str) -> None:
        """Entries of requests that left stay in the heap until they outnumber the others."""
        if len(self._deadlines) > 2 * len(self._waiting) + 64:
            self._deadlines = [entry for entry in self._deadlines if self._is_waiting(*entry)]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, request_id))

    def _join(self, user: str) -> None:
        if not self._active:
            self._served.clear()
        if user not in self._active:
            floor = min((self._served[name] for name in self._active), default=0)
            self._served[user] = max(self._served.get(user, 0), floor)
        self._active[user] = self._active.get(user, 0) + 1

    def _remove(self, request: Generate) -> None:
        del self._waiting[request.id]
        self._num_tokens -= len(request.prompt)
        users = self._classes[request.priority]
        del users[request.user][request.id]
        if not users[request.user]:
            del users[request.user]
        if not users:
            del self._classes[request.priority]
