"""A step that computes nothing and checks everything.

Its "KV cache" holds, for each position of each page, a hash chained over the tokens up to there. A position is
computed from the entry before it *as found in the page*, never from the row's tokens, so a page that was reused,
shared or published wrongly changes the tokens that come out. Freed and never written entries are poison.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..batch import Batch, Capacity, Decoded, Outcomes, RowOutcome, Seat, Ticket, TokenLogprobs

MASK = 2**64 - 1


def chain(state: int, token: int) -> int:
    """The next state of a 64-bit hash over tokens (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (state * 0x9E3779B97F4A7C15 + token + 1) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


class RowView(msgspec.Struct):
    """What a script may look at to choose the next token."""

    seat: Seat
    tokens: list[int]
    state: int
    """The chained hash of all tokens, as the KV cache holds it."""

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.seat.prompt_len


NextToken = Callable[[RowView], int | str | None]
"""The next token of a row; a string to fail the row with; None to give nothing yet."""


class ScriptedTicket(msgspec.Struct):
    """A launch whose result is known already."""

    outcomes: Outcomes


class ScriptedStep:
    """Implements `Step`. `next_token` decides; `before` runs at each launch and `after` at each collect, and may
    raise, sleep or count."""

    def __init__(
        self,
        capacity: Capacity,
        next_token: NextToken,
        *,
        before: Callable[[Batch], None] = lambda batch: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.capacity = capacity
        self.is_closed = False
        self._next_token = next_token
        self._before = before
        self._after = after
        self._kv: dict[tuple[int, int], int] = {}
        self._rows: dict[int, RowView] = {}
        self._tables: dict[int, list[int]] = {}
        self._computed: dict[int, int] = {}

    def launch(self, batch: Batch) -> ScriptedTicket:
        outcomes = self.perform(batch)
        chunked, decoded = outcomes[: len(batch.chunks)], outcomes[len(batch.chunks) :]
        told: list[RowOutcome | Decoded] = [*chunked, *(row for row in decoded if not _is_plain(row))]
        if decoded:
            told.append(Decoded(batch.decodes, [(*row.tokens, -1)[0] for row in decoded]))
        return ScriptedTicket(told)

    def perform(self, batch: Batch) -> list[RowOutcome]:
        """What the batch gives, row by row."""
        assert not self.is_closed, "launched after close"
        self._before(batch)
        for seat in batch.seats:
            self._seat(seat)
        for slot, pages in batch.grown:
            self._tables[slot] += pages
        named = [chunk.slot for chunk in batch.chunks] + list(batch.decodes)
        assert len(set(named)) == len(named), "a slot twice in one batch"
        outcomes = []
        for chunk in batch.chunks:
            scores = self._score(chunk.slot, chunk.start, chunk.count)
            self._compute(chunk.slot, chunk.start, chunk.count)
            outcome = self._sample(chunk.slot, 1) if chunk.samples else RowOutcome(chunk.slot)
            outcomes.append(msgspec.structs.replace(outcome, prompt_logprobs=scores))
        return outcomes + [self._decode(slot) for slot in batch.decodes]

    def collect(self, ticket: Ticket) -> Outcomes:
        assert isinstance(ticket, ScriptedTicket), "a ticket of another step"
        self.pause()
        return ticket.outcomes

    def pause(self) -> None:
        """What comes between a launch and its outcomes."""
        self._after()

    def prepare(self) -> bool:
        return False

    def close(self) -> None:
        self.is_closed = True

    def _seat(self, seat: Seat) -> None:
        self._rows[seat.slot] = RowView(seat, list(seat.tokens), 0)
        self._tables[seat.slot] = list(seat.pages)
        self._computed[seat.slot] = seat.start
        for position in range(seat.start):
            self._read(seat.slot, position)

    def _compute(self, slot: int, start: int, count: int) -> None:
        row = self._rows[slot]
        assert start in (self._computed[slot], self._computed[slot] - 1), "positions out of order"
        assert start + count <= len(row.tokens), "a chunk past the tokens"
        for position in range(start, start + count):
            before = self._read(slot, position - 1) if position else 0
            self._kv[self._place(slot, position)] = chain(before, row.tokens[position])
        self._computed[slot] = start + count
        row.state = self._read(slot, start + count - 1)

    def _decode(self, slot: int) -> RowOutcome:
        """Up to `tokens_per_launch` tokens: each writes its predecessor's position first."""
        row = self._rows[slot]
        if self._computed[slot] < len(row.tokens):
            self._compute(slot, len(row.tokens) - 1, 1)
        return self._sample(slot, min(self.capacity.tokens_per_launch, row.seat.limit - len(row.tokens)))

    def _sample(self, slot: int, bound: int) -> RowOutcome:
        row = self._rows[slot]
        tokens: list[int] = []
        for index in range(bound):
            if index:
                self._compute(slot, len(row.tokens) - 1, 1)
            token = self._next_token(row)
            if isinstance(token, str):
                return RowOutcome(slot, error=token)
            if token is None:
                break
            row.tokens.append(token)
            tokens.append(token)
        return RowOutcome(slot, tuple(tokens), self._logprobs(row, tokens))

    def _logprobs(self, row: RowView, tokens: list[int]) -> tuple[TokenLogprobs, ...]:
        sampling = row.seat.sampling
        if sampling.logprobs is None:
            return ()
        return tuple(_scored(token, sampling.logprobs, sampling.logprob_token_ids) for token in tokens)

    def _score(self, slot: int, start: int, count: int) -> tuple[TokenLogprobs | None, ...]:
        row = self._rows[slot]
        if row.seat.sampling.prompt_logprobs is None:
            return ()
        return tuple(
            TokenLogprobs(row.tokens[position], -0.5) if position else None
            for position in range(start, start + count)
        )

    def _place(self, slot: int, position: int) -> tuple[int, int]:
        table, size = self._tables[slot], self.capacity.page_size
        assert position // size < len(table), "a position without a page"
        page = table[position // size]
        assert 0 < page < self.capacity.num_pages, "a page that does not exist"
        return page, position % size

    def _read(self, slot: int, position: int) -> int:
        return self._kv.get(self._place(slot, position), 0xDEAD)


def _is_plain(outcome: RowOutcome) -> bool:
    return len(outcome.tokens) == 1 and not outcome.logprobs and outcome.error is None


def _scored(token: int, k: int, named: tuple[int, ...]) -> TokenLogprobs:
    others = [t for t in range(k + 1) if t != token]
    top = [(token, -0.25), *((other, -2.0 - other) for other in others)][:k]
    return TokenLogprobs(token, -0.25, tuple(top) + tuple((t, -9.0) for t in named))
