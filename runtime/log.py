"""One response's record: append-only, addressed by sequence number, read through cursors. The only buffer there is.

The engine's loop is the only thread that touches a log. A reader is a cursor: resuming is a cursor set back, a second
reader is a second cursor, and a slow reader is a cursor that lags and gets the deltas it missed merged into one. Most
of a log are pieces, which it shares with others; they become events when they are read. A reader that has read all may
take them as they are appended, without a turn of the loop in between. A log's length is bounded by what was admitted
(max_tokens and log-probabilities), and no more logs grow at a time than the engine has rows, so nothing is ever cut
from one and no reader slows the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

import msgspec

from .events import Event
from .text.pieces import Piece

Take = Callable[[Sequence[Piece], int], bool]
"""Of pieces, and the number of the last, within `extend`: so it must return at once. False: they are not taken, and
whoever waits is to be woken, as by any event."""
Waiter = asyncio.Future[None]


class Log:
    """Sealed by its `done` event; what is appended later is discarded and counted in `num_discarded`."""

    __slots__ = (
        "_ends",
        "_entries",
        "_event_bytes",
        "_id",
        "_readers",
        "_take",
        "is_sealed",
        "num_discarded",
    )

    def __init__(self, response_id: str) -> None:
        self._id = response_id
        self._entries: list[Event | Piece] = []
        self._readers: list[Waiter] = []
        self._take: Take | None = None
        """That of the only reader, while it waits."""
        self._ends: list[Waiter] = []
        self.is_sealed = False
        self.num_discarded = self._event_bytes = 0

    @property
    def last(self) -> Event:
        return self.read(self.last_seq - 1)[0]

    @property
    def last_seq(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        return self._event_bytes + 8 * len(self._entries)

    def append(self, event: Event) -> bool:
        """Add the event with `seq == last_seq + 1`. False if the log is sealed."""
        if self.is_sealed:
            self.num_discarded += 1
            return False
        assert event.seq == self.last_seq + 1
        self._entries.append(event)
        self._event_bytes += 200 + 2 * len(event.text) + 8 * len(event.token_ids)
        if event.logprobs or event.prompt_logprobs:
            self._event_bytes += _scores_bytes(event)
        self.is_sealed = event.kind == "done"
        self._wake_readers()
        if self.is_sealed:
            _wake(self._ends)
        return True

    def extend(self, pieces: Sequence[Piece]) -> None:
        """Add a delta of choice 0 for each. The log must be open."""
        assert not self.is_sealed
        self._entries += pieces
        try:
            if self._take is None or not self._take(pieces, len(self._entries)):
                self._wake_readers()
        except Exception as error:  # its own affair
            self._wake_readers(error)

    def read(self, after: int) -> list[Event]:
        """The events with seq > `after` that are there now."""
        after = max(0, after)
        return [
            entry
            if isinstance(entry, Event)
            else Event(self._id, seq, "delta", 0, entry.text, entry.token_ids)
            for seq, entry in enumerate(self._entries[after:], after + 1)
        ]

    def text(self, after: int, until: int) -> str:
        """Of the deltas with `after` < seq <= `until`."""
        return "".join([entry.text for entry in self._entries[after:until]])

    async def follow(self, after: int = 0) -> AsyncGenerator[Event]:
        """Events with seq > `after`, then live ones, to the `done` event. Consecutive deltas are merged if the reader
        was away while several came."""
        while True:
            news = merged(self.read(after))
            for event in news:
                yield event
                after = event.seq
            if not news:
                if self.is_sealed:
                    return
                await self.news()

    async def wait_sealed(self) -> None:
        """Costs an entry nothing until the last."""
        if not self.is_sealed:
            await _woken(self._ends)

    async def news(self, take: Take | None = None) -> None:
        """Waits for the next event, or for pieces that `take` does not take. Raises what `take` does. With several
        readers none takes anything: all are woken by whatever comes."""
        self._take = None if self._readers else take
        try:
            await _woken(self._readers)
        finally:
            self._take = None

    def _wake_readers(self, error: Exception | None = None) -> None:
        """They take nothing more until they have caught up."""
        self._take = None
        _wake(self._readers, error)


async def _woken(waiting: list[Waiter]) -> None:
    waiter = asyncio.get_running_loop().create_future()
    waiting.append(waiter)
    try:
        await waiter
    finally:
        waiting.remove(waiter)


def _wake(waiting: list[Waiter], error: Exception | None = None) -> None:
    for waiter in waiting:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def _scores_bytes(event: Event) -> int:
    scores = (event.logprobs or ()) + (event.prompt_logprobs or ())
    return sum(100 + 100 * len(score.top) for score in scores if score is not None)


def merged(events: Iterable[Event]) -> list[Event]:
    """The same story in fewer events: neighbouring deltas of one choice become one, with the highest of their seqs.

    Deltas of different choices are not reordered, so that every event covers all up to its seq, and a reader that
    comes back with `after=seq` misses and repeats nothing.
    """
    events = list(events)
    if len(events) < 2:
        return events
    runs: list[list[Event]] = []
    for event in events:
        last = runs[-1][-1] if runs else None
        if last is not None and event.kind == last.kind == "delta" and event.index == last.index:
            runs[-1].append(event)
        else:
            runs.append([event])
    return [run[0] if len(run) == 1 else joined(run) for run in runs]


def joined(parts: Sequence[Event]) -> Event:
    """Events of one choice as one: the last of them, with the text, the ids and the log-probabilities of all."""
    logprobs = tuple(entry for part in parts for entry in part.logprobs or ())
    return msgspec.structs.replace(
        parts[-1],
        text="".join([part.text for part in parts]),
        token_ids=tuple([token for part in parts for token in part.token_ids]),
        logprobs=None if parts[-1].logprobs is None else logprobs,
    )
