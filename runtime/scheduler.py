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

import msgspec

from .batch import Batch, Capacity, Chunk, RowOutcome, Seat
from .events import FinishReason
from .messages import Generate, Output, SchedulerStats
from .pages import PagePool
from .prefix import PrefixHasher
from .sequence import Sequence

_BY_ORDER = attrgetter("order")


class Scheduler:
    """Owns seated and preempted rows; the queue on the loop owns the rest. One thread calls it.

    `secret` keys the names of cached pages. `max_batch_tokens` bounds the tokens of a step, decodes included, though
    every decoding row always runs.
    """

    def __init__(
        self, capacity: Capacity, *, max_batch_tokens: int, prefix_cache: bool = True, secret: bytes = b""
    ) -> None:
        self.capacity = capacity
        self.pages = PagePool(capacity.num_pages)
        self._hasher = PrefixHasher(secret, capacity.page_size)
        self._prefix_cache = prefix_cache
        self._max_batch_tokens = max_batch_tokens
        self._free_slots = list(range(capacity.max_rows - 1, -1, -1))
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._ghosts: list[Sequence] = []
        self._by_id: dict[str, list[Sequence]] = {}
        self._launches: deque[list[tuple[Sequence, int, int]]] = deque()
        self._serial = 0
        self._received_rows = 0
        self._prefix_queries = self._prefix_hits = self._preemptions = 0

    @property
    def num_in_flight(self) -> int:
        return len(self._launches)

    @property
    def is_idle(self) -> bool:
        """Nothing seated, waiting or in flight."""
        return not (self._running or self._waiting or self._launches)

    def add(self, request: Generate) -> None:
        """Take in a request: one row per choice, seated by a later `plan`."""
        use_cache = self._prefix_cache and request.use_prefix_cache
        root = self._hasher.root(b"salt:" + request.salt if use_cache else b"only:" + request.id.encode())
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
        late = [
            r
            for r in self._running + self._waiting
            if r.request.deadline is not None and r.request.deadline <= now
        ]
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
        grown: list[tuple[int, tuple[int, ...]]] = []
        chunks: list[Chunk] = []
        decodes: list[int] = []
        launch: list[tuple[Sequence, int, int]] = []
        seats = self._seat_waiting()
        decoding = sum(row.decoding for row in self._running)
        budget = max(self._max_batch_tokens - decoding, self.capacity.page_size)
        for row in list(self._running):
            if row.slot < 0 or row.preempting or row.exhausted:
                continue
            if row.decoding:
                if not self._grow(row, grown):
                    continue
                decodes.append(row.slot)
                launch.append((row, 0, self._bound(row)))
            elif budget > 0:
                count = min(len(row.tokens) - row.planned, budget)
                samples = row.planned + count == len(row.tokens)
                budget -= count
                chunks.append(Chunk(row.slot, row.planned, count, samples))
                launch.append((row, count, int(samples)))
        seated = {row.slot for row in self._running}
        seats = [seat for seat in seats if seat.slot in seated]
        if not launch and not seats:
            return None
        for row, count, bound in launch:
            row.in_flight += 1
            row.planned += count or bound
            row.pending += bound
            row.decoding = row.decoding or bound > 0
        self._launches.append(launch)
        self._serial += 1
        return Batch(self._serial, tuple(seats), tuple(grown), tuple(chunks), tuple(decodes))

    def commit(self, outcomes: Iterable[RowOutcome]) -> list[Output]:
        """Take in what the oldest launch gave; returns what the loop should know."""
        by_slot = {outcome.slot: outcome for outcome in outcomes}
        outputs: list[Output] = []
        for row, count, bound in self._launches.popleft():
            row.in_flight -= 1
            if row.ended:
                continue
            outcome = by_slot.get(row.slot, RowOutcome(row.slot))
            if outcome.error is not None:
                outputs.append(self._finish(row, "error", error=outcome.error))
                continue
            output = self._advance(row, count, bound, outcome)
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
            pages_total=self.pages.num_pages - 1,
            pages_used=self.pages.num_used,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            preemptions=self._preemptions,
            steps=self._serial,
        )

    def check(self) -> None:
        """Raise AssertionError unless the books balance. For tests and idle time."""
        self.pages.check()
        seated = self._running + self._ghosts
        slots = [row.slot for row in seated]
        assert sorted(slots + self._free_slots) == list(range(self.capacity.max_rows)), (
            "a slot is lost or doubled"
        )
        held = [page for row in seated for page in row.pages]
        assert len(set(held)) == self.pages.num_used, "a page is used by no row"
        assert all(not row.pages for row in self._waiting), "a waiting row holds pages"
        assert all(row.in_flight for row in self._ghosts), "a ghost nobody waits for"
        for row in self._running:
            assert row.computed <= row.planned <= len(row.pages) * self.capacity.page_size, (
                "positions out of order"
            )
            assert row.planned <= len(row.tokens) + row.pending <= row.limit, "a row past its limit"
        open_rows = [row for rows in self._by_id.values() for row in rows]
        assert sorted(map(id, open_rows)) == sorted(map(id, self._running + self._waiting)), "a row is lost"

    # Seating

    def _seat_waiting(self) -> list[Seat]:
        seats: list[Seat] = []
        for row in list(self._waiting):
            if not self._free_slots:
                break
            if self._follows(row):
                continue
            shared = self._shared_pages(row)
            cached = sum(1 for page in shared if self.pages.is_cached(page))
            fresh = self._num_pages(len(row.tokens)) - len(shared)
            if (
                fresh + cached + len(self._running) > self.pages.num_available
                and self._running + self._ghosts
            ):
                break
            seats.append(self._seat(row, shared, fresh))
        return seats

    def _seat(self, row: Sequence, shared: list[int], fresh: int) -> Seat:
        for page in shared:
            self.pages.share(page)
        row.pages = shared + self.pages.take(fresh)
        row.slot = self._free_slots.pop()
        row.planned = row.computed = len(shared) * self.capacity.page_size
        self._prefix_queries += len(row.tokens)
        self._prefix_hits += row.computed
        if row.cached_tokens is None:
            row.cached_tokens = row.unreported_cached = row.computed
        self._waiting.remove(row)
        insort(self._running, row, key=_BY_ORDER)
        pages, tokens = tuple(row.pages), tuple(row.tokens)
        return Seat(row.slot, tokens, row.prompt_len, row.limit, row.computed, pages, row.sampling)

    def _follows(self, row: Sequence) -> bool:
        """Whether a further choice should wait for choice 0 to write the prompt's pages."""
        leader = row.leader
        if leader is None or leader.ended:
            return False
        return leader.computed < (row.prompt_len - 1) // self.capacity.page_size * self.capacity.page_size

    def _shared_pages(self, row: Sequence) -> list[int]:
        """Pages of the longest known prefix; at least one token is left to compute."""
        if row.wants_prompt_scores:
            return []
        reach = len(row.tokens) - 1
        self._hasher.extend(row.keys, row.tokens, reach)
        shared: list[int] = []
        for key in row.keys[1 : reach // self.capacity.page_size + 1]:
            page = self.pages.find(key)
            if page is None:
                break
            shared.append(page)
        return shared

    # Growing

    def _bound(self, row: Sequence) -> int:
        """How many tokens one decode launch may give a row."""
        return min(self.capacity.tokens_per_launch, row.limit - len(row.tokens) - row.pending)

    def _num_pages(self, length: int) -> int:
        return -(-length // self.capacity.page_size)

    def _grow(self, row: Sequence, grown: list[tuple[int, tuple[int, ...]]]) -> bool:
        """Reserve pages to the bound of the next launch, preempting the last rows in order. False: not now."""
        missing = self._num_pages(row.planned + self._bound(row)) - len(row.pages)
        while missing > self.pages.num_available:
            if self._ghosts or any(other.preempting for other in self._running):
                return False
            victim = self._running[-1]
            self._preempt(victim)
            if victim is row or victim.preempting:
                return False
        if missing > 0:
            pages = self.pages.take(missing)
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
        self._free_seat(row)
        row.unseat()
        insort(self._waiting, row, key=_BY_ORDER)

    # Committing

    def _advance(self, row: Sequence, count: int, bound: int, outcome: RowOutcome) -> Output | None:
        start = row.computed
        tokens, reason = self._accept(row, outcome.tokens[:bound])
        gained = len(outcome.tokens[:bound])
        row.pending -= bound
        row.computed += count or gained
        row.planned -= 0 if count else bound - gained
        row.tokens += tokens
        if count and bound and not gained:
            self._sample_again(row)
        if not row.ended:
            self._publish(row)
        output = Output(
            row.request.id,
            row.choice,
            tuple(tokens),
            outcome.logprobs[: len(tokens)],
            row.take_prompt_scores(start, outcome.prompt_logprobs),
            row.unreported_cached,
            reason,
            tokens[-1] if reason == "stop_token" else None,
        )
        row.unreported_cached = None
        if reason is not None:
            self._end(row)
        return output if tokens or output.prompt_logprobs or output.cached_tokens is not None else None

    def _sample_again(self, row: Sequence) -> None:
        """A chunk should have given a token and did not: its last position runs again. Without run-ahead only."""
        assert not row.in_flight, "a sampling chunk gave no token with launches in flight"
        row.decoding = False
        row.planned = row.computed = len(row.tokens) - 1

    def _accept(self, row: Sequence, tokens: Iterable[int]) -> tuple[list[int], FinishReason | None]:
        """The tokens up to the one that ends the row, and why it ends."""
        accepted: list[int] = []
        for token in tokens:
            accepted.append(token)
            if token in row.sampling.end_token_ids:
                return accepted, "stop_token"
            if len(row.tokens) + len(accepted) >= row.limit:
                return accepted, "length"
        return accepted, None

    def _publish(self, row: Sequence) -> None:
        """Make full pages findable: every position written, every token committed."""
        reach = min(row.computed, len(row.tokens))
        self._hasher.extend(row.keys, row.tokens, reach)
        full = reach // self.capacity.page_size
        for index in range(row.num_published, full):
            self.pages.publish(row.pages[index], row.keys[index + 1])
        row.num_published = max(row.num_published, full)

    # Ending

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
            self._free_seat(row)

    def _free_seat(self, row: Sequence) -> None:
        self.pages.give_back(row.pages)
        self._free_slots.append(row.slot)

    def _release_ghosts(self) -> None:
        for ghost in [g for g in self._ghosts if not g.in_flight]:
            self._ghosts.remove(ghost)
            self._free_seat(ghost)
