"""One `/v1/chat/ws` socket: a reader that never waits for anything else, and a task for each request.

As on every socket here the reader is always receiving (a server that is not sees no abort and no pong). Answers belong
to the registry: they begin, go on and are kept whether or not this socket lives, and a request is one reader of one.
A page that reads slowly lags in the log and gets merged deltas; nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from uuid import uuid4

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..runtime.events import Event
from ..runtime.log import merged
from .conversation import answer_splitter
from .entry import Entry
from .principal import Principal, principal_of
from .protocols.errors import Refused
from .protocols.ui_session import Abort, Action, Close, Request, Resume, Send, UISession
from .service import Service
from .wire import frame_sender

STATUS_S = 2.0
"""A request that has nothing to say says so at this pace."""
MAX_UNREAD = 256
"""Replies to bad requests that may wait to be read."""
TOO_BIG, POLICY = 1009, 1008
CLOSE_S = 5


class ChatEntry(Entry):
    """An answer that a chat asked for. `sent_as` is the id of the request that did."""

    def __init__(self, send: Send, principal: Principal) -> None:
        request = send.request
        super().__init__(f"resp_{uuid4().hex}", principal, send.on_disconnect, chat_id=request.chat_id)
        self.sent_as = request.id


class ChatSocket:
    def __init__(self, service: Service, websocket: WebSocket) -> None:
        self._service = service
        self._websocket = websocket
        self._principal = service.instructed(principal_of(websocket.scope))
        instructs = self._principal.instructions is not None
        self._session = UISession(service.model, instructs=instructs)
        self._readers: dict[str, tuple[Entry, anyio.CancelScope]] = {}
        self._num_unread = 0

    async def run(self) -> None:
        """Serve the socket until either side closes it. What then is open goes on without it."""
        await self._websocket.accept()
        self._sender = frame_sender(self._websocket)
        async with anyio.create_task_group() as self._tasks:
            close = await self._read()
            self._tasks.cancel_scope.cancel()
        if close is not None:
            with anyio.move_on_after(CLOSE_S):
                await self._websocket.close(close.code, close.reason)

    async def _read(self) -> Close | None:
        """Feeds the session until the client leaves, or must be cut off."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            frame = message.get("text") or message.get("bytes") or b""
            if len(frame) > self._service.max_frame_bytes:
                return Close(TOO_BIG, f"a frame may have {self._service.max_frame_bytes} bytes")
            for action in self._session.receive(frame):
                if isinstance(action, Close):
                    return action
                self._perform(action)
            if self._num_unread > MAX_UNREAD:
                return Close(POLICY, "replies are not read")

    def _perform(self, action: Action) -> None:
        if isinstance(action, Send):
            self._submit(action)
        elif isinstance(action, Resume):
            self._resume(action.request)
        elif isinstance(action, Abort):
            self._abort(action.request)
        elif isinstance(action, bytes):
            self._reply(action)

    def _submit(self, send: Send) -> None:
        """The chat is taken from here on, before the first await: a second request for it finds it live."""
        registry, request = self._service.registry, send.request
        live = registry.latest(self._principal, request.chat_id)
        if live is not None and not (live.is_over or live.is_cancelled):
            self._session.over(request)
            self._reply(request.refused("an answer for this chat is under way: resume it, or abort it first"))
            return
        entry = registry.open(ChatEntry(send, self._principal))
        self._service.start(registry.begin(entry, [send.generate]))
        self._follow(request, entry)

    def _resume(self, request: Request) -> None:
        entry = self._service.registry.latest(self._principal, request.chat_id)
        if entry is None or (not entry.has_begun and (entry.is_over or entry.is_cancelled)):
            self._session.over(request)
            self._reply(request.no_active())
            return
        self._follow(request, entry, request.active())

    def _abort(self, request: Request) -> None:
        entry, scope = self._readers[request.id]
        entry.cancel()
        scope.cancel()

    def _reply(self, frame: bytes) -> None:
        self._num_unread += 1
        self._tasks.start_soon(self._send_reply, frame)

    async def _send_reply(self, frame: bytes) -> None:
        await self._send(frame)
        self._num_unread -= 1

    def _follow(self, request: Request, entry: Entry, *first: bytes) -> None:
        scope = anyio.CancelScope()
        self._readers[request.id] = entry, scope
        self._tasks.start_soon(self._tell, request, entry, scope, first)

    async def _tell(
        self, request: Request, entry: Entry, scope: anyio.CancelScope, first: tuple[bytes, ...]
    ) -> None:
        """Everything that the request is told, from its first frame to its last."""
        try:
            with scope, self._service.answering(), self._service.registry.reading(entry):
                try:
                    await self._send_all(first)
                    await self._replay(request, entry)
                except Refused as refused:
                    await self._send(request.refused(str(refused)))
        finally:
            del self._readers[request.id]
            self._session.over(request)

    async def _replay(self, request: Request, entry: Entry) -> None:
        chunks = request.chunks
        if await entry.begun() is not None:
            split = answer_splitter(entry, self._service.backend.tokenizer)
            sent_as = entry.sent_as if isinstance(entry, ChatEntry) else ""
            await self._send_all(chunks.begin(entry.id, split, sent_as=sent_as, created_at=entry.created_at))
        async with aclosing(_paced(entry.batches(), STATUS_S)) as batches:
            async for batch in batches:
                if not batch:
                    await self._send(chunks.status(**_status(entry)))
                for event in merged(batch):
                    await self._send_all(chunks.feed(event))

    async def _send_all(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            await self._send(frame)

    async def _send(self, frame: bytes) -> None:
        try:
            await self._sender(frame)
        except WebSocketDisconnect:
            await anyio.sleep_forever()  # until the reader, which sees it too, cancels this task


async def _paced(batches: AsyncGenerator[list[Event]], pause_s: float) -> AsyncGenerator[list[Event]]:
    """The batches, and an empty one after every pause without news."""
    over: list[Event] = []
    upcoming = asyncio.ensure_future(anext(batches, over))
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=pause_s)
            if not upcoming.done():
                yield []
                continue
            batch = upcoming.result()
            if batch is over:
                return
            yield batch
            upcoming = asyncio.ensure_future(anext(batches, over))
    finally:
        upcoming.cancel()
        await asyncio.wait({upcoming})
        await batches.aclose()


def _status(entry: Entry) -> dict[str, object]:
    progress = entry.progress()
    if progress is None:
        return {"state": "generating"}
    state = "queued" if progress.queue_position else "prefill"
    return {
        "state": state,
        "queuePosition": progress.queue_position,
        "promptTokensDone": progress.prefill_done,
        "promptTokens": progress.prefill_total,
    }
