"""Drives a step by hand: rows with pages of their choosing, prompts cut as told, batches mixed as told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from spelled import by_slot

from jitney.runtime.batch import Batch, Chunk, RowOutcome, RowSampling, Seat, Step

GREEDY = RowSampling(seed=0, temperature=0.0)


@dataclass
class Row:
    """One sequence: its prompt, the pages it will use, and where its prompt is cut."""

    prompt: Sequence[int]
    sampling: RowSampling = GREEDY
    cuts: Sequence[int] = ()
    generated: list[int] = field(default_factory=list)
    outcomes: list[RowOutcome] = field(default_factory=list)


class Driver:
    """Hands out pages from a shuffled or plain list, and keeps every outcome with its row."""

    def __init__(self, step: Step, pages: Sequence[int] | None = None) -> None:
        self.step = step
        self.free = list(pages if pages is not None else range(1, step.capacity.num_pages))
        self.tables: dict[int, list[int]] = {}
        self.serial = 0

    def pages_for(self, length: int) -> tuple[int, ...]:
        count = -(-length // self.step.capacity.page_size)
        taken, self.free = self.free[:count], self.free[count:]
        return tuple(taken)

    def run(
        self,
        seats: Sequence[Seat] = (),
        chunks: Sequence[Chunk] = (),
        decodes: Sequence[int] = (),
        grown: Sequence[tuple[int, tuple[int, ...]]] = (),
    ) -> dict[int, RowOutcome]:
        self.serial += 1
        batch = Batch(self.serial, tuple(seats), tuple(grown), tuple(chunks), tuple(decodes))
        return by_slot(self.step.collect(self.step.launch(batch)))

    def seat(
        self, slot: int, row: Row, room: int, *, start: int = 0, pages: tuple[int, ...] | None = None
    ) -> Seat:
        tokens = (*row.prompt, *row.generated)
        pages = pages if pages is not None else self.pages_for(len(row.prompt) + room)
        self.tables[slot] = list(pages)
        limit = len(row.prompt) + room
        return Seat(slot, tokens, len(row.prompt), limit, start, pages, row.sampling)

    def generate(
        self, rows: Sequence[Row], count: int, *, slots: Sequence[int] | None = None
    ) -> list[list[int]]:
        """All rows together: their chunks first, in turns, then `count` tokens each."""
        slots = list(slots if slots is not None else range(len(rows)))
        seats = [self.seat(slot, row, count) for slot, row in zip(slots, rows, strict=True)]
        pieces = {slot: _chunks(slot, row) for slot, row in zip(slots, rows, strict=True)}
        by_slot = dict(zip(slots, rows, strict=True))
        while any(pieces.values()) or any(len(row.generated) < count for row in rows):
            chunks = [pieces[slot].pop(0) for slot in slots if pieces[slot]]
            busy = {chunk.slot for chunk in chunks}
            decodes = [s for s in slots if s not in busy and 0 < len(by_slot[s].generated) < count]
            for slot, outcome in self.run(seats, chunks, decodes).items():
                by_slot[slot].outcomes.append(outcome)
                by_slot[slot].generated.extend(outcome.tokens)
            seats = []
        return [row.generated for row in rows]


def _chunks(slot: int, row: Row, start: int = 0) -> list[Chunk]:
    total = len(row.prompt) + len(row.generated)
    stops = [start, *row.cuts, total]
    return [Chunk(slot, a, b - a, b == total) for a, b in zip(stops, stops[1:], strict=False)]
