"""One `/v1/chat/ws` socket: a reader that never waits for anything else, and a task for each request.

As on every socket here the reader is always receiving (a server that is not sees no abort and no pong). Answers belong
to the registry: they begin, go on and are kept whether or not this socket lives, and a request is one reader of one.
A page that reads slowly lags in the log and gets merged deltas; nobody waits for it.
"""

from __future__ import annotations

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from .chat_reader import ChatEntry, ChatReader
from .ending import Ending
from .entry import Entry
from .principal import principal_of
from .protocols.ui_session import Abort, Action, Close, Request, Resume, Send, UISession
from .service import Service
from .wire import frame_sender

STATUS_S = 2.0
"""A request that nothing was said to for as long is told what its answer is at."""
MAX_UNREAD = 256
"""Replies to bad requests that may wait to be read."""
TOO_BIG, POLICY = 1009, 1008
CLOSE_S = 5


class ChatSocket:
    def __init__(self, service: Service, websocket: WebSocket) -> None:
        self._service = service
        self._websocket = websocket
        self._tokenizer = service.backend.tokenizer
        self._principal = service.instructed(principal_of(websocket.scope))
        instructs = self._principal.instructions is not None
        self._session = UISession(service.model, instructs=instructs)
        self._readers: dict[str, tuple[ChatReader, anyio.CancelScope]] = {}
        self._num_unread = 0
        self._end = Ending()

    async def run(self) -> None:
        """Serve the socket until either side closes it. What then is open goes on without it."""
        await self._websocket.accept()
        self._sender = frame_sender(self._websocket)
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._fill_silence)
            close = await self._read()
            await self._end.come()
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
            with self._service.answering():
                await self._service.turnstile.passed()
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
        reader, scope = self._readers[request.id]
        scope.cancel()  # first: a reader that has news is not cancelled before it has told them
        reader.entry.cancel()

    def _reply(self, frame: bytes) -> None:
        self._num_unread += 1
        self._tasks.start_soon(self._send_reply, frame)

    async def _send_reply(self, frame: bytes) -> None:
        await self._send(frame)
        self._num_unread -= 1

    def _follow(self, request: Request, entry: Entry, *first: bytes) -> None:
        reader = ChatReader(request, entry, self._tokenizer, self._send, self._sender)
        scope = anyio.CancelScope()
        self._readers[request.id] = reader, scope
        self._tasks.start_soon(self._tell, request, reader, scope, first)

    async def _tell(
        self, request: Request, reader: ChatReader, scope: anyio.CancelScope, first: tuple[bytes, ...]
    ) -> None:
        try:
            with scope, self._service.answering(), self._service.registry.reading(reader.entry):
                await reader.tell(first)
        finally:
            del self._readers[request.id]
            self._session.over(request)

    async def _fill_silence(self) -> None:
        """A page sees no pings: whoever waits is told every few seconds that the answer comes."""
        while not await self._end.within(STATUS_S):
            for reader, _ in list(self._readers.values()):
                await reader.tell_status()

    async def _send(self, frame: bytes) -> None:
        try:
            await self._sender.send_frame(frame)
        except WebSocketDisconnect:
            await anyio.sleep_forever()  # until the reader, which sees it too, cancels this task
