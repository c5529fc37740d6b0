"""Which rows run in the next step, and what the last one's tokens mean. Pure: no torch, no clock, no thread.

`plan` and `commit` alternate freely: up to `depth` launches may be planned before the oldest is committed, because a
plan looks only at committed lengths and at the upper bound of what is in flight, never at a token's value. A row that
ends while launches still name it rides on as a ghost: its slot and pages return when the last of them is committed.

Most rows that decode are steady (see `Flight`): a plan looks at one only when its pages are used up or its end is near,
and a commit only where a token is one of those that end rows.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from itertools import compress
from operator import not_

from .batch import Batch, Capacity, Chunk, Outcomes, RowOutcome, Seat
from .chunking import Chunking
from .events import FinishReason
from .flight import Cohort, Flight, Single
from .messages import Advance, Generate, Output, SchedulerStats, Singles
from .roster import BY_ORDER, Roster
from .seating import Seating
from .sequence import Sequence, choices

Grown = list[tuple[int, tuple[int, ...]]]
Tokens = abc.Sequence[int]


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
        self._chunking = Chunking(capacity, max_batch_tokens)
        self.seating = Seating(capacity, prefix_cache=prefix_cache, secret=secret)
        self._flight = Flight(capacity.tokens_per_launch)
        self._roster = Roster(capacity, self.seating, self._flight)
        self._received_rows = self._received_cancels = 0
        self._singles = Singles()

    @property
    def is_idle(self) -> bool:
        """Nothing seated, waiting or in flight."""
        return not (self._roster.running or self._roster.waiting or self._flight.num_launches)

    def add(self, request: Generate) -> None:
        """Take in a request: one row per choice, seated by a later `plan`."""
        self._roster.add(choices(request, self.seating.root(request)))
        self._received_rows += request.n

    def cancel(self, request_id: str, choice: int | None = None) -> None:
        """End a request, or one choice, without an output. Unknown and ended ones are left alone."""
        self._received_cancels += 1
        for row in self._roster.find(request_id):
            if choice is None or row.choice == choice:
                self._roster.end(row, keep=True)

    def expire(self, now: float) -> list[Output | Advance]:
        """End the rows whose deadline has passed."""
        return [self._finish(row, "deadline") for row in self._roster.late(now)]

    def fail_all(self, error: str) -> list[Output | Advance]:
        """End every seated row, after a step that raised: their KV is not to be trusted. Launches are forgotten."""
        self._flight.forget()
        outputs: list[Output | Advance] = [
            self._finish(row, "error", error) for row in list(self._roster.running)
        ]
        self._roster.release()
        return outputs

    def plan(self) -> Batch | None:
        """The next launch, or None if no row can advance before something is committed."""
        seats = self._roster.seat()
        grown: Grown = []
        singles: list[Single] = []
        filling: list[Sequence] = []
        for row in self._woken():
            if row.slot < 0 or row.preempting:
                continue
            if not row.decoding:
                filling.append(row)
            elif self._decodes_alone(row, grown):
                singles.append(Single(row, 0, True))
        decoding = self._flight.num_steady + len(singles)
        budget = self._chunking.budget(decoding, filling, self._roster.waiting)
        for row in filling:
            length = 0 if row.slot < 0 or row.preempting else min(len(row.tokens) - row.planned, budget)
            budget -= length
            if length:
                singles.append(Single(row, length, row.samples_after(length)))
        if seats:
            seated = {row.slot for row in self._roster.running}
            seats = [seat for seat in seats if seat.slot in seated]
        if not (singles or seats or self._flight.num_steady):
            return None
        return self._launch(singles, seats, grown)

    def _woken(self) -> list[Sequence]:
        """The rows to look at, in order: those that asked for it, and those that are not steady."""
        woken = list(self._flight.woken())
        if self._flight.num_steady < len(self._roster.running):
            woken += [row for row in self._roster.running if not row.wake]
        woken.sort(key=BY_ORDER)
        return woken

    def _launch(self, singles: list[Single], seats: list[Seat], grown: Grown) -> Batch:
        chunks = [Chunk(row.slot, row.planned, length, samples) for row, length, samples in singles if length]
        decodes = [row.slot for row, length, _ in singles if not length]
        for row, length, _ in singles:
            row.planned += length
        slots = self._flight.launch(singles).slots + tuple(decodes)
        return Batch(self._flight.latest, tuple(seats), tuple(grown), tuple(chunks), slots)

    def commit(self, outcomes: Outcomes) -> list[Output | Advance]:
        """Take in what the oldest launch gave; returns what the loop should know."""
        cohort, singles = self._flight.commit()
        tokens, told = _by_row(cohort.slots, outcomes)
        outputs: list[Output | Advance] = []
        for single in singles:
            self._settle(single, told.pop(single.row.slot, None), outputs)
        self._advance(cohort, tokens, told, outputs)
        self._roster.release()
        return outputs

    def stats(self) -> SchedulerStats:
        waiting = len(self._roster.waiting)
        return SchedulerStats(
            running=len(self._roster.running),
            waiting=waiting,
            free_rows=len(self.seating.free_slots) - waiting,
            received_rows=self._received_rows,
            received_cancels=self._received_cancels,
            pages_total=self.seating.pages.num_pages - 1,
            pages_used=self.seating.pages.num_used,
            pages_pinned=self.seating.pins.num_pages,
            prefix_queries=self.seating.num_queried,
            prefix_hits=self.seating.num_hit,
            preemptions=self._roster.num_preempted,
            steps=self._flight.latest,
        )

    # Decoding

    def _decodes_alone(self, row: Sequence, grown: Grown) -> bool:
        """Decide on a decoding row: it is steady, or in the next launch by itself, or not in it at all. Once it has
        missed a launch, it waits until what the others gave is known."""
        flight = self._flight
        if not row.wake and row.last < flight.latest:
            if flight.names(row):
                return False
            row.since = flight.latest
        reach, most = flight.reach(row), self.capacity.tokens_per_launch
        if reach >= row.limit or not self._grow(row, min(reach + most, row.limit) - 1, grown):
            flight.unsettle(row)
            return False
        room = len(row.pages) * self.capacity.page_size
        if flight.settle(row, min(room + 1, row.limit - 1)):
            return False
        flight.unsettle(row)
        return True

    def _grow(self, row: Sequence, length: int, grown: Grown) -> bool:
        """See to it that pages hold `length` positions, preempting the last rows in order. The pages that are
        full become findable. False: not now."""
        missing = self.seating.num_pages(length) - len(row.pages)
        while not self.seating.has_room(missing):
            if self._roster.leaving:
                return False
            victim = self._roster.running[-1]
            self._roster.preempt(victim)
            if victim is row or victim.preempting:
                return False
        if missing > 0:
            self.seating.publish(row)
            pages = self.seating.pages.take(missing)
            row.pages += pages
            grown.append((row.slot, tuple(pages)))
        return True

    # Committing

    def _advance(
        self, cohort: Cohort, tokens: Tokens, told: dict[int, RowOutcome], outputs: list[Output | Advance]
    ) -> None:
        """Give each row of the cohort its token. Those of which more is to be said are settled by themselves."""
        names: abc.Sequence[tuple[str, int]] = cohort.names
        pushes: abc.Sequence[Callable[[int], None]] = cohort.pushes
        if told or self._roster.leaving or not cohort.ends.isdisjoint(tokens):
            plain = [
                not (row.ended or row.slot in told or token in row.sampling.end_token_ids)
                for row, token in zip(cohort.rows, tokens, strict=True)
            ]
            for row, token in compress(zip(cohort.rows, tokens, strict=True), map(not_, plain)):
                outcome = told.get(row.slot) or RowOutcome(row.slot, (token,))
                self._settle(Single(row, 0, True), outcome, outputs)
            names, pushes = list(compress(names, plain)), list(compress(pushes, plain))
            tokens = list(compress(tokens, plain))
        for push, token in zip(pushes, tokens, strict=True):
            push(token)
        if tokens:
            outputs.append(Advance(names, [*map(self._singles.__getitem__, tokens)]))

    def _settle(self, single: Single, outcome: RowOutcome | None, outputs: list[Output | Advance]) -> None:
        """What a launch gave one row."""
        row, length, samples = single
        outcome = outcome or RowOutcome(row.slot)
        if row.ended:
            return
        if outcome.error is not None:
            outputs.append(self._finish(row, "error", error=outcome.error))
            return
        start = row.computed
        tokens, reason = row.advance(length, samples, outcome.tokens)
        assert tokens or not length or not samples or not self._flight.names(row), (
            "no token from a prompt's end"
        )
        if length:
            self.seating.publish(row)
        output = Output(
            row.request.id,
            row.choice,
            tokens,
            outcome.logprobs[: len(tokens)],
            row.take_prompt_scores(start, outcome.prompt_logprobs),
            row.unreported_cached,
            reason,
            tokens[-1] if reason == "stop_token" else None,
            prefilled=row.computed if length and not samples else None,
        )
        row.unreported_cached = None
        if reason is not None:
            self.seating.pin(row)
            self._roster.end(row, keep=True)
        if (
            tokens
            or output.prompt_logprobs
            or output.cached_tokens is not None
            or output.prefilled is not None
        ):
            outputs.append(output)

    def _finish(self, row: Sequence, reason: FinishReason, error: str | None = None) -> Output:
        self._roster.end(row, keep=error is None)
        return Output(row.request.id, row.choice, finish_reason=reason, error=error)


def _by_row(slots: tuple[int, ...], outcomes: Outcomes) -> tuple[Tokens, dict[int, RowOutcome]]:
    """A token for each of `slots`, and what else is told of any row: that counts where both are there."""
    tokens: Tokens = ()
    told: dict[int, RowOutcome] = {}
    for outcome in outcomes:
        if isinstance(outcome, RowOutcome):
            told[outcome.slot] = outcome
            continue
        count = len(slots) if outcome.slots[: len(slots)] == slots else 0
        tokens = outcome.tokens[:count]
        for slot, token in zip(outcome.slots[count:], outcome.tokens[count:], strict=True):
            told.setdefault(slot, RowOutcome(slot, (token,)))
    if len(tokens) < len(slots):
        return [-1] * len(slots), {slot: RowOutcome(slot) for slot in slots} | told
    return tokens, told
