"""One client's cursor in one answer: what it is sent, in its own time, as frames of the Responses API.

A reader that lags finds more in the log when it comes back and gets it merged; one without credit waits until it has
some. Either holds up nobody: the log is what it is, and all that a reader holds is where it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ..runtime.backend import Tokenizer
from ..runtime.events import Event
from ..runtime.log import Log
from .conversation import answer_splitter, events_of, shown
from .entry import Entry
from .line import Line
from .protocols.delivery import Delivery
from .protocols.errors import Refusal, Refused, invalid
from .protocols.responses import TERMINAL_ONLY
from .tap import Tap
from .wire import FrameSender


class Reader:
    """`frames` once. `after` is the last sequence number that the client has; -1: nothing yet. `waits`: the answer has
    not begun, and the client is to hear so."""

    __slots__ = (
        "_after", "_credit", "_cursor", "_delivery", "_events", "_granted", "_tokenizer", "_waits", "entry",
        "is_told", "stream_id",
    )  # fmt: skip

    def __init__(
        self,
        entry: Entry,
        tokenizer: Tokenizer,
        *,
        stream_id: str | None = None,
        after: int = -1,
        delivery: Delivery | None = None,
        waits: bool = False,
    ) -> None:
        self.entry = entry
        self.stream_id = stream_id
        self.is_told = False
        """Whether it has been sent anything."""
        self._tokenizer = tokenizer
        self._events = events_of(entry, tokenizer, stream_id=stream_id, after=after)
        self._after = after
        self._delivery = delivery or Delivery()
        self._waits = waits
        self._credit = self._delivery.credit
        self._granted = asyncio.Event()
        self._cursor = 0

    async def frames(self, sender: FrameSender | None = None) -> AsyncGenerator[list[bytes]]:
        """What to send, to the last frame, a list for each time that there was news. Plain deltas go straight to
        `sender` as they are appended to the log, while it has room and all that came before was sent. Raises `Refused`
        where the answer was refused, or where the client says that it has what does not exist."""
        events = self._events
        if self._waits:
            yield events.queued()
        response = await self.entry.begun()
        if response is None:
            yield events.feed([self.entry.stillborn()])
            return
        self._check_place(response.log)
        yield events.begin(answer_splitter(self.entry, self._tokenizer))
        self.is_told = True
        is_prompt = self._credit is None and self._delivery.min_flush_tokens == 1
        while not events.is_done:
            await self._until_granted(response.log)
            if is_prompt and isinstance(sender, Line):
                await self._tapped(response.log, sender)
            news = await news_of(response.log, self._cursor, self._delivery)
            self._cursor = news[-1].seq
            num_deltas = events.num_deltas
            yield events.feed(news)
            if self._credit is not None:
                self._credit -= events.num_deltas - num_deltas

    def refused(self, why: Refusal) -> bytes:
        """The last frame of an answer that will not begin. It has the next number if it was told to wait."""
        return why.frame(self.stream_id, self._events.reached + 1 if self._waits else None)

    def grant(self, credit: int) -> None:
        """The client can take so many more deltas."""
        if self._credit is not None:
            self._credit += credit
            self._granted.set()

    def still(self) -> bytes | None:
        """The news for a client that waits for the first token; None for others."""
        progress = self.entry.progress()
        return self._events.still(progress) if self.is_told and progress is not None else None

    async def _tapped(self, log: Log, line: Line) -> None:
        """From the end of the log, as long as there are plain deltas; then the encoder hears of them."""
        delta = self._events.plain()
        if delta is None or log.last_seq != self._cursor:
            return
        tap = Tap(delta, line, self._cursor)
        await log.news(tap.take)
        if tap.num_frames:
            text, num_entries = log.text(self._cursor, tap.seq), tap.seq - self._cursor
            self._events.catch_up(text, tap.seq, num_entries, tap.num_frames)
            self._cursor = tap.seq

    async def _until_granted(self, log: Log) -> None:
        """Or until what is left to send holds no delta, or is what little a cancel has left."""
        while self._credit is not None and self._credit <= 0 and not self._is_at_the_end(log):
            self._granted.clear()
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._granted.wait())]
            if not log.is_sealed:
                waits.append(asyncio.ensure_future(log.wait_sealed()))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    def _is_at_the_end(self, log: Log) -> bool:
        if not log.is_sealed:
            return False
        return log.last.finish_reason == "cancelled" or not self._events.owes(log.read(self._cursor))

    def _check_place(self, log: Log) -> None:
        """A client cannot have what has not been said: it takes this answer for another, or has its end already."""
        if self._after <= 2 or self._after == TERMINAL_ONLY:
            return
        reached = shown(self.entry, self._tokenizer).reached
        if self._after > reached or (self._after == reached and log.is_sealed):
            expected = f"a number below {reached}, its last" if log.is_sealed else f"at most {reached}"
            message = f"starting_after: expected {expected}, got {self._after}"
            raise Refused(invalid(message, code="invalid_value", param="starting_after"))


async def news_of(log: Log, cursor: int, delivery: Delivery) -> list[Event]:
    """Waits for something behind `cursor`, and then for as much as the client asked for."""
    while log.last_seq == cursor:
        await log.news()
    if delivery.min_flush_tokens > 1:
        patience_ms = delivery.max_flush_ms
        try:
            async with asyncio.timeout(None if patience_ms is None else patience_ms / 1000):
                while not log.is_sealed and _num_tokens(log.read(cursor)) < delivery.min_flush_tokens:
                    await log.news()
        except TimeoutError:
            pass
    return log.read(cursor)


def _num_tokens(events: list[Event]) -> int:
    return sum(len(event.token_ids) for event in events)
