"""One response's record: append-only, addressed by sequence number, read through cursors. The only buffer there is.

The engine's loop is the only thread that touches a log. A reader is a cursor: resuming is a cursor set back, a second
reader is a second cursor, and a slow reader is a cursor that lags and gets the deltas it missed merged into one. A
reader that has read all may take the next entry as it is appended, without a turn of the loop in between. A
log's length is bounded by what was admitted (max_tokens and log-probabilities), and no more logs grow at a time than
the engine has rows, so nothing is ever cut from one and no reader slows the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

import msgspec

from .events import Event

Take = Callable[[Event], bool]
"""Called within `append`, so it must return at once. False: it is not taken, and whoever waits is to be woken."""
Waiting = tuple[asyncio.Future[None], Take | None]


class Log:
    """Sealed by its `done` event; what is appended later is discarded and counted in `num_discarded`."""

    __slots__ = ("_ends", "_events", "_readers", "is_sealed", "last_seq", "num_bytes", "num_discarded")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._readers: list[Waiting] = []
        self._ends: list[Waiting] = []
        self.is_sealed = False
        self.last_seq = self.num_discarded = self.num_bytes = 0

    @property
    def last(self) -> Event:
        return self._events[-1]

    def append(self, event: Event) -> bool:
        """Add the event with `seq == last_seq + 1`. False if the log is sealed."""
        if self.is_sealed:
            self.num_discarded += 1
            return False
        self.last_seq += 1
        assert event.seq == self.last_seq
        self._events.append(event)
        self.num_bytes += 200 + 2 * len(event.text) + 8 * len(event.token_ids)
        if event.logprobs or event.prompt_logprobs:
            self.num_bytes += _scores_bytes(event)
        self.is_sealed = event.kind == "done"
        if self._readers:
            _tell(self._readers, event)
        if self.is_sealed:
            _tell(self._ends, event)
        return True

    def read(self, after: int) -> list[Event]:
        """The events with seq > `after` that are there now."""
        return self._events[max(0, after) :]

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
            await _told(self._ends, None)

    async def news(self, take: Take | None = None) -> None:
        """Waits for the next entry that `take` does not take. Raises what `take` does."""
        await _told(self._readers, take)


async def _told(waiting: list[Waiting], take: Take | None) -> None:
    reader = asyncio.get_running_loop().create_future(), take
    waiting.append(reader)
    try:
        await reader[0]
    finally:
        waiting.remove(reader)


def _tell(waiting: list[Waiting], event: Event) -> None:
    """One that was woken takes nothing more until it has caught up; what a reader raises is its own affair, and one
    that leaves as it takes is told nothing."""
    for waiter, take in waiting:
        if waiter.done():
            continue
        try:
            is_taken = take is not None and take(event)
            if not is_taken and not waiter.done():
                waiter.set_result(None)
        except Exception as error:
            if not waiter.done():
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
