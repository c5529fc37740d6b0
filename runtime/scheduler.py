"""Which rows run in the next step, and what the last one's tokens mean. Pure: no torch, no clock, no thread.

`plan` and `commit` alternate freely: up to `depth` launches may be planned before the oldest is committed, because a
plan looks only at committed lengths and at the upper bound of what is in flight, never at a token's value. A row that
ends while launches still name it rides on as a ghost: its slot and pages return when the last of them is committed.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

import msgspec

from .batch import Batch, Capacity, Chunk, RowOutcome, Seat
from .events import FinishReason
from .messages import Generate, Output, SchedulerStats
from .seating import Seating
from .sequence import Sequence

EAGERNESS, CROWD = 16, 64
"""A launch takes twice as many prompt tokens beside decoding rows when a 16th as many rows as decode (or as a crowd of
64) are held up: one long prompt hardly slows the others, a full waiting room is emptied soon."""

_BY_ORDER = attrgetter("order")


class _Launched(NamedTuple):
    """A row in a launch: a chunk of `length` positions, or a decode where that is 0; at most `bound` tokens."""

    row: Sequence
    length: int
    bound: int


class Scheduler:
    """Owns seated and preempted rows; the queue on the loop owns the rest. One thread calls it.

    `secret` keys the names of cached pages. `max_batch_tokens` overrides both of the step's own bounds.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        max_batch_tokens: int | None = None,
        prefix_cache: bool = True,
        secret: bytes = b"",
    ) -> None:
        self.capacity = capacity
        self._max_tokens = max_batch_tokens or capacity.max_batch_tokens
        self._mixed_tokens = max_batch_tokens or capacity.mixed_tokens
        self.seating = Seating(capacity, prefix_cache=prefix_cache, secret=secret)
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._ghosts: list[Sequence] = []
        self._by_id: dict[str, list[Sequence]] = {}
        self._launches: deque[list[_Launched]] = deque()
        self._serial = 0
        self._received_rows = 0
        self._preemptions = 0

    @property
    def is_idle(self) -> bool:
        """Nothing seated, waiting or in flight."""
        return not (self._running or self._waiting or self._launches)

    def add(self, request: Generate) -> None:
        """Take in a request: one row per choice, seated by a later `plan`."""
        root = self.seating.root(request)
        rows: list[Sequence] = []
        for choice in range(request.n):
            sampling = request.sampling
            if choice:
                sampling = msgspec.structs.replace(sampling, choice=choice, prompt_logprobs=None)
            rows.append(Sequence(request, sampling, root, leader=rows[0] if rows else None))
            insort(self._waiting, rows[-1], key=_BY_ORDER)
        self._by_id[request.id] = rows
        self._received_rows += request.n

    def cancel(self, request_id: str, choice: int | None = None) -> None:
        """End a request, or one choice, without an output. Unknown and ended ones are left alone."""
        for row in list(self._by_id.get(request_id, ())):
            if choice is None or row.choice == choice:
                self._end(row)

    def expire(self, now: float) -> list[Output]:
        """End the rows whose deadline has passed."""
        late = [row for row in self._running + self._waiting if row.is_late(now)]
        return [self._finish(row, "deadline") for row in late]

    def fail_all(self, error: str) -> list[Output]:
        """End every seated row, after a step that raised: their KV is not to be trusted. Launches are forgotten."""
        outputs = [self._finish(row, "error", error=error) for row in list(self._running)]
        self._launches.clear()
        for ghost in self._ghosts:
            ghost.in_flight = 0
        self._release_ghosts()
        return outputs

    def plan(self) -> Batch | None:
        """The next launch, or None if no row can advance before something is committed."""
        seats = self._seat_waiting()
        grown: list[tuple[int, tuple[int, ...]]] = []
        launch: list[_Launched] = []
        decoding = sum(row.decoding for row in self._running)
        budget = self._chunk_budget(decoding)
        for row in list(self._running):
            if row.slot < 0 or row.preempting or row.exhausted:
                continue
            if not row.decoding:
                length = min(len(row.tokens) - row.planned, budget)
                budget -= length
                if length:
                    launch.append(_Launched(row, length, row.chunk_bound(length)))
            elif self._grow(row, grown):
                launch.append(_Launched(row, 0, row.bound(self.capacity.tokens_per_launch)))
        seated = {row.slot for row in self._running}
        seats = [seat for seat in seats if seat.slot in seated]
        if not launch and not seats:
            return None
        return self._launch(launch, seats, grown)

    def _chunk_budget(self, decoding: int) -> int:
        """Prompt tokens of a launch. Beside `decoding` rows they are few, so that those keep their pace, but the more
        rows wait for each that decodes, the more; at least a page, so that prompts always advance."""
        budget = self._max_tokens - decoding
        if decoding:
            held_up = len(self._running) + len(self._waiting) - decoding
            eagerness = 1 + held_up / (max(decoding, CROWD) / EAGERNESS)
            budget = min(budget, int(self._mixed_tokens * eagerness))
        return max(budget, self.capacity.page_size)

    def _launch(
        self, launch: list[_Launched], seats: list[Seat], grown: list[tuple[int, tuple[int, ...]]]
    ) -> Batch:
        chunks = [
            Chunk(row.slot, row.planned, length, bool(bound)) for row, length, bound in launch if length
        ]
        decodes = [row.slot for row, length, _ in launch if not length]
        for row, length, bound in launch:
            row.launched(length, bound)
        self._launches.append(launch)
        self._serial += 1
        return Batch(self._serial, tuple(seats), tuple(grown), tuple(chunks), tuple(decodes))

    def commit(self, outcomes: Iterable[RowOutcome]) -> list[Output]:
        """Take in what the oldest launch gave; returns what the loop should know."""
        by_slot = {outcome.slot: outcome for outcome in outcomes}
        outputs: list[Output] = []
        for launched in self._launches.popleft():
            row = launched.row
            row.in_flight -= 1
            if row.ended:
                continue
            outcome = by_slot.get(row.slot, RowOutcome(row.slot))
            if outcome.error is not None:
                outputs.append(self._finish(row, "error", error=outcome.error))
                continue
            output = self._advance(row, launched, outcome)
            if output is not None:
                outputs.append(output)
            if row.preempting and not row.in_flight and not row.ended:
                self._unseat(row)
        self._release_ghosts()
        return outputs

    def stats(self) -> SchedulerStats:
        running, waiting = len(self._running), len(self._waiting)
        return SchedulerStats(
            running=running,
            waiting=waiting,
            free_rows=self.capacity.max_rows - running - waiting - len(self._ghosts),
            received_rows=self._received_rows,
            pages_total=self.seating.pages.num_pages - 1,
            pages_used=self.seating.pages.num_used,
            pages_pinned=self.seating.pins.num_pages,
            prefix_queries=self.seating.num_queried,
            prefix_hits=self.seating.num_hit,
            preemptions=self._preemptions,
            steps=self._serial,
        )

    def check(self) -> None:
        """Raise AssertionError unless the books balance. For tests and idle time."""
        self.seating.pages.check()
        seated = self._running + self._ghosts
        slots = sorted([row.slot for row in seated] + self.seating.free_slots)
        assert slots == list(range(self.capacity.max_rows)), "a slot is lost or doubled"
        held = [page for row in seated for page in row.pages] + self.seating.pins.pages
        assert len(set(held)) == self.seating.pages.num_used, "a page is used by no row"
        assert all(not row.pages for row in self._waiting), "a waiting row holds pages"
        assert all(row.in_flight for row in self._ghosts), "a ghost nobody waits for"
        for row in self._running:
            room = len(row.pages) * self.capacity.page_size
            assert row.computed <= row.planned <= room, "positions out of order"
            assert row.planned <= len(row.tokens) + row.pending <= row.limit, "a row past its limit"
        open_rows = [row for rows in self._by_id.values() for row in rows]
        assert sorted(map(id, open_rows)) == sorted(map(id, self._running + self._waiting)), "a row is lost"

    def _seat_waiting(self) -> list[Seat]:
        """Seat rows in order while slots and pages last, with a page to spare for each row that already runs."""
        seats: list[Seat] = []
        for row in list(self._waiting):
            if not self.seating.free_slots:
                break
            if self.seating.follows(row):
                continue
            alone = not (self._running or self._ghosts)
            seat = self.seating.seat(row, None if alone else len(self._running))
            if seat is None:
                break
            self._waiting.remove(row)
            insort(self._running, row, key=_BY_ORDER)
            seats.append(seat)
        return seats

    def _grow(self, row: Sequence, grown: list[tuple[int, tuple[int, ...]]]) -> bool:
        """Reserve pages to the bound of the next launch, preempting the last rows in order. False: not now."""
        missing = self.seating.num_pages(row.planned + row.bound(self.capacity.tokens_per_launch)) - len(
            row.pages
        )
        while not self.seating.has_room(missing):
            if self._ghosts or any(other.preempting for other in self._running):
                return False
            victim = self._running[-1]
            self._preempt(victim)
            if victim is row or victim.preempting:
                return False
        if missing > 0:
            pages = self.seating.pages.take(missing)
            row.pages += pages
            grown.append((row.slot, tuple(pages)))
        return True

    def _preempt(self, row: Sequence) -> None:
        """Give the row's pages back and compute it again later. One in flight collects that first."""
        self._preemptions += 1
        if row.in_flight:
            row.preempting = True
        else:
            self._unseat(row)

    def _unseat(self, row: Sequence) -> None:
        self._running.remove(row)
        self.seating.leave(row)
        row.unseat()
        insort(self._waiting, row, key=_BY_ORDER)

    def _advance(self, row: Sequence, launched: _Launched, outcome: RowOutcome) -> Output | None:
        start = row.computed
        tokens, reason = row.advance(launched.length, launched.bound, outcome.tokens)
        self.seating.publish(row)
        output = Output(
            row.request.id,
            row.choice,
            tuple(tokens),
            outcome.logprobs[: len(tokens)],
            row.take_prompt_scores(start, outcome.prompt_logprobs),
            row.unreported_cached,
            reason,
            tokens[-1] if reason == "stop_token" else None,
            prefilled=row.computed if launched.length and not launched.bound else None,
        )
        row.unreported_cached = None
        if reason is not None:
            self.seating.pin(row)
            self._end(row)
        is_news = tokens or output.prompt_logprobs or output.cached_tokens is not None
        return output if is_news or output.prefilled is not None else None

    def _finish(self, row: Sequence, reason: FinishReason, error: str | None = None) -> Output:
        self._end(row)
        return Output(row.request.id, row.choice, finish_reason=reason, error=error)

    def _end(self, row: Sequence) -> None:
        """Take a row out of every list. Its slot and pages wait for the launches in flight."""
        row.ended = True
        rows = self._by_id[row.request.id]
        rows.remove(row)
        if not rows:
            del self._by_id[row.request.id]
        if row.slot < 0:
            self._waiting.remove(row)
            return
        self._running.remove(row)
        if row.in_flight:
            self._ghosts.append(row)
        else:
            self.seating.leave(row)

    def _release_ghosts(self) -> None:
        for ghost in [g for g in self._ghosts if not g.in_flight]:
            self._ghosts.remove(ghost)
            self.seating.leave(ghost)
