"""One request's cursor in one answer: everything that it is told over its socket, from its first frame to its last.

The log is read from its beginning, so that a page that resumes gets the whole answer. Two tasks send for a reader,
the one that follows the log and the one that fills silence; a lock keeps the frames in the order of their numbers.
While neither has anything to send, a delta goes to the socket as it is appended to the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from ..runtime.backend import Tokenizer
from ..runtime.log import Log, merged
from ..runtime.text.pieces import Piece
from .conversation import answer_splitter
from .entry import Entry
from .principal import Principal
from .protocols.errors import Refused
from .protocols.ui_session import Request, Send
from .wire import FrameSender

Put = Callable[[bytes], Awaitable[None]]


class ChatEntry(Entry):
    """An answer that a chat asked for. `sent_as` is the id of the request that did."""

    def __init__(self, send: Send, principal: Principal) -> None:
        request = send.request
        super().__init__(f"resp_{uuid4().hex}", principal, send.on_disconnect, chat_id=request.chat_id)
        self.sent_as = request.id


class ChatReader:
    """`put` sends a frame over `sender`, and waits while the client lags."""

    def __init__(
        self, request: Request, entry: Entry, tokenizer: Tokenizer, put: Put, sender: FrameSender
    ) -> None:
        self.entry = entry
        self._request = request
        self._tokenizer = tokenizer
        self._put = put
        self._sender = sender
        self._cursor = 0
        self._order = asyncio.Lock()
        self._has_begun = False
        self._was_silent = False

    async def tell(self, first: Sequence[bytes] = ()) -> None:
        """To the end of the answer, or of the refusal."""
        try:
            await self._put_all(first)
            await self._replay()
        except Refused as refused:
            await self._put(self._request.refused(str(refused)))

    async def tell_status(self) -> None:
        """Called from time to time: where nothing was said since the last time, say what the answer is at."""
        was_silent, self._was_silent = self._was_silent, True
        if not was_silent or not self._has_begun:
            return
        async with self._order:
            if not self._request.chunks.is_done:
                await self._put(self._request.chunks.status(**_status(self.entry)))

    async def _replay(self) -> None:
        chunks, entry = self._request.chunks, self.entry
        response = await entry.begun()
        if response is None:
            await self._put_all(chunks.feed(entry.stillborn()))
            return
        split = answer_splitter(entry, self._tokenizer)
        sent_as = entry.sent_as if isinstance(entry, ChatEntry) else ""
        await self._put_all(chunks.begin(entry.id, split, sent_as=sent_as, created_at=entry.created_at))
        self._has_begun = True
        while not chunks.is_done:
            await self._tell_news(response.log)

    async def _tell_news(self, log: Log) -> None:
        if log.last_seq == self._cursor:
            await log.news(self._take)
        async with self._order:
            news = log.read(self._cursor)
            self._cursor = news[-1].seq
            for event in merged(news):
                await self._put_all(self._request.chunks.feed(event))

    def _take(self, pieces: Sequence[Piece], seq: int) -> bool:
        """As they are appended to the log."""
        if self._order.locked() or not self._sender.has_room:
            return False
        self._was_silent = False
        self._cursor = seq
        for frame in self._request.chunks.add("".join([piece.text for piece in pieces])):
            self._sender.put_frame(frame)
        return True

    async def _put_all(self, frames: Sequence[bytes]) -> None:
        self._was_silent = False
        for frame in frames:
            await self._put(frame)


def _status(entry: Entry) -> dict[str, object]:
    progress = entry.progress()
    if progress is None:
        return {"state": "generating"}
    return {
        "state": "queued" if progress.queue_position else "prefill",
        "queuePosition": progress.queue_position,
        "promptTokensDone": progress.prefill_done,
        "promptTokens": progress.prefill_total,
    }
