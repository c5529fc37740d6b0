"""Waiting behind a batch that runs: deadlines are kept there too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

from scripted import followed
from scripted_padded import PagelessBackend, ScriptedPadded

from jitney.runtime.batch import RowOutcome, Seat
from jitney.runtime.engines.padded import PaddedEngine


class HeldPadded(ScriptedPadded):
    """Its steps give no token until they are let go."""

    def __init__(self, max_rows: int) -> None:
        super().__init__(max_rows)
        self.free = threading.Event()

    def run(self, seats: Sequence[Seat]) -> Iterator[list[RowOutcome]]:
        rest = super().run(seats)
        while not self.free.is_set():
            yield [RowOutcome(seat.slot) for seat in seats]
        yield from rest


async def test_a_deadline_is_kept_while_a_request_waits_its_turn() -> None:
    made, held = PagelessBackend(1), HeldPadded(1)
    made.padded = held
    padded = PaddedEngine(made)
    await padded.start()
    running = asyncio.create_task(padded.generate("hello"))
    try:
        while not padded.stats().running:  # noqa: ASYNC110
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            answers = await padded.generate(["one", "two"], deadline_s=0.01)
            events = await followed(padded.stream("three", deadline_s=0.01))
    finally:
        held.free.set()
    assert [answer["finish_reason"] for answer in answers] == ["deadline"] * 2
    assert events[-1].finish_reason == "deadline"
    assert (await running)[0]["text"] == "hello" and held.runs == [1]
    assert (await padded.generate("again", deadline_s=100))[0]["text"] == "again"
    await padded.close()
