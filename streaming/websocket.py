"""One `/v1/responses` socket: a reader that never waits for anything else, and tasks for what it starts.

The reader must always be receiving: a server that is not sees neither a cancel nor a pong, and its own keep-alive
then kills a healthy stream. So the reader only feeds the session and starts what it says. Two kinds of task: a
follower sends one answer's frames at the pace of the socket, and ends with it; a turn sees one answer from its
beginning to its end, for the sake of the lane behind it, and may outlive the socket with all that waits there.
Replies to bad frames go through a short queue, and a client that fills it without reading is cut off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from functools import partial
from time import time
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from .conversation import conversation
from .ending import Ending
from .entry import Entry
from .principal import principal_of
from .protocols.actions import Action, Begin, Cancel, Grant, Open, Refuse, Resume, Turn
from .protocols.delivery import FINISH
from .protocols.errors import Refused
from .protocols.responses import TERMINAL_ONLY
from .protocols.session import ResponsesSession
from .reader import Reader
from .service import Service
from .wire import frame_sender

MAX_FOLLOWED = 256
"""Answers that one socket may follow at a time, those that wait included."""
MAX_UNREAD_BYTES = 4 * 2**20
PROGRESS_S = 2.0
TOO_BIG, POLICY = 1009, 1008
CLOSE_S = 5
"""How long a client that is cut off may take to read what it was sent before."""


class ResponsesSocket:
    def __init__(self, service: Service, websocket: WebSocket) -> None:
        self._service = service
        self._websocket = websocket
        self._principal = principal_of(websocket.scope)
        self._tokenizer = service.backend.tokenizer
        self._entries = WeakKeyDictionary[Turn, Entry]()
        self._followed: dict[Reader, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies: deque[bytes] = deque()
        self._unread_bytes = 0
        self._has_replies = asyncio.Event()
        self._end = Ending()
        self._has_replied = asyncio.Event()
        self._has_replied.set()
        self._session = ResponsesSession(
            service.model,
            partial(conversation, service.registry, self._principal, tokenizer=self._tokenizer),
            new_id=lambda: f"resp_{uuid4().hex}",
            clock=asyncio.get_running_loop().time,
            check_open=service.registry.check_open,
        )

    async def run(self) -> None:
        """Serve the socket until either side closes it. What its lanes still have to do goes on without it."""
        await self._websocket.accept()
        self._sender = frame_sender(self._websocket)
        async with asyncio.TaskGroup() as self._group:
            self._start(self._write_replies())
            self._start(self._tell_progress())
            code = await self._read()
            self._has_replies.set()
            await self._end.come()
            for task in list(self._tasks):
                task.cancel()
        if code is not None:
            with anyio.move_on_after(CLOSE_S):
                await self._websocket.close(code)

    def _start(self, following: Coroutine[Any, Any, None]) -> None:
        """What ends with the socket."""
        task = self._group.create_task(following)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self) -> int | None:
        """Feeds the session until the client leaves (None), or must be cut off (a close code)."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            frame = message.get("text") or message.get("bytes") or b""
            if len(frame) > self._service.max_frame_bytes:
                return TOO_BIG
            with self._service.answering():
                await self._service.turnstile.passed()
                for action in self._session.receive(frame):
                    self._perform(action)
            if self._unread_bytes > MAX_UNREAD_BYTES or len(self._followed) > MAX_FOLLOWED:
                return POLICY

    def _perform(self, action: Action) -> None:
        if isinstance(action, Open):
            self._open(action.turn, action.waits)
        elif isinstance(action, (Begin, Refuse)):
            self._service.start(self._see_through(action))
        elif isinstance(action, (Cancel, Resume)):
            self._look_up(action)
        elif isinstance(action, Grant):
            self._grant(action)
        else:
            self._reply(action)

    # Answers

    def _open(self, turn: Turn, waits: bool) -> None:
        entry = Entry(
            turn.id,
            self._principal,
            turn.delivery.policy(FINISH),
            facts=turn.create.facts(time()),
        )
        self._entries[turn] = self._service.registry.open(entry)
        self._follow(Reader(entry, self._tokenizer, stream_id=turn.lane, delivery=turn.delivery, waits=waits))
        if waits and turn.due is not None:
            self._start(self._expire(turn, entry))

    async def _expire(self, turn: Turn, entry: Entry) -> None:
        """A turn whose deadline passes while it waits in its lane ends there."""
        try:
            async with asyncio.timeout_at(turn.due):
                await entry.settled()
        except TimeoutError:
            if self._session.withdraw(turn):
                self._service.registry.expire(entry)

    def _look_up(self, action: Cancel | Resume) -> None:
        """A cancelled answer that nobody here follows is acknowledged with its last frame."""
        registry = self._service.registry
        try:
            if isinstance(action, Cancel):
                entry = registry.cancel(self._principal, action.response_id)
                if any(reader.entry is entry for reader in self._followed):
                    return
                reader = Reader(entry, self._tokenizer, stream_id=action.lane, after=TERMINAL_ONLY)
            else:
                entry = registry.find(self._principal, action.response_id)
                entry.check_single()
                reader = Reader(
                    entry,
                    self._tokenizer,
                    stream_id=action.lane,
                    after=action.after,
                    delivery=action.delivery,
                    waits=not entry.is_settled,
                )
            self._follow(reader)
        except Refused as exc:
            self._reply(exc.refusal.frame(action.lane))

    def _grant(self, action: Grant) -> None:
        for reader in self._followed:
            is_named = reader.entry.id == action.response_id
            if is_named or (action.response_id is None and reader.stream_id == action.lane):
                reader.grant(action.credit)

    def _follow(self, reader: Reader) -> None:
        self._followed[reader] = asyncio.Event()
        self._start(self._send_frames(reader))

    async def _send(self, frame: bytes) -> None:
        try:
            await self._sender.send_frame(frame)
        except WebSocketDisconnect:
            # The socket is closing; the reader sees it too and cancels this task.
            await anyio.sleep_forever()

    async def _send_frames(self, reader: Reader) -> None:
        """What was due before comes before: a turn's own frames follow the replies to earlier requests."""
        try:
            with self._service.registry.reading(reader.entry):
                await self._has_replied.wait()
                async with aclosing(reader.frames(self._sender)) as batches:
                    async for batch in batches:
                        for frame in batch:
                            if self._sender.has_room:
                                self._sender.put_frame(frame)
                            else:
                                await self._send(frame)
        except Refused as exc:
            await self._send(reader.refused(exc.refusal))
        finally:
            self._followed.pop(reader).set()

    async def _see_through(self, begin: Begin | Refuse) -> None:
        """A turn, from the engine's door until its last frame is sent, or nobody is there to send it to."""
        turn, registry = begin.turn, self._service.registry
        entry = self._entries[turn]
        with self._service.answering():
            if not entry.is_over and isinstance(begin, Refuse):
                registry.refuse(entry, begin.why)
            elif not entry.is_over and isinstance(begin, Begin):
                entry.history = turn.history
                with suppress(Exception):  # its readers are told
                    await registry.begin(entry, [begin.generate])
            await entry.over()
            for sent in [sent for reader, sent in self._followed.items() if reader.entry is entry]:
                await sent.wait()
        for action in self._session.ended(turn, refused=entry.refused is not None, failed=entry.has_failed):
            self._perform(action)

    # Sending

    def _reply(self, frame: bytes) -> None:
        self._replies.append(frame)
        self._unread_bytes += len(frame)
        self._has_replied.clear()
        self._has_replies.set()

    async def _write_replies(self) -> None:
        while not self._end.has_come:
            await self._has_replies.wait()
            while self._replies:
                frame = self._replies.popleft()
                await self._send(frame)
                self._unread_bytes -= len(frame)
            self._has_replies.clear()
            self._has_replied.set()

    async def _tell_progress(self) -> None:
        """A page sees no pings: whoever waits for a first token is told every other second that it comes. Not on a
        socket that is lagging: it is not silent, and what is true now might be read after the first token."""
        while not await self._end.within(PROGRESS_S):
            for reader in list(self._followed):
                frame = None if self._sender.lags else reader.still()
                if frame is not None:
                    await self._send(frame)
