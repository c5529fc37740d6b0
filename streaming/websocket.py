"""One `/v1/responses` socket: a reader that never waits for anything else, a writer for its replies, a task a turn.

The reader must always be receiving: a server that is not sees neither a cancel nor a pong, and its own keep-alive
then kills a healthy stream. So the reader only feeds the session and starts what it says. Each turn's task follows
its log and sends at the pace of the socket; a client that reads slowly lags in the log and holds up nobody. Replies
to bad frames go through a short queue, and a client that fills it without reading is cut off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from time import time
from uuid import uuid4

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..runtime.response import Response
from .principal import principal_of
from .protocols.errors import refusal
from .protocols.session import Action, Begin, ResponsesSession, Stop, Turn
from .service import Service

MAX_UNREAD_BYTES = 4 * 2**20
TOO_BIG, POLICY = 1009, 1008
CLOSE_S = 5
"""How long a client that is cut off may take to read what it was sent before."""


class ResponsesSocket:
    def __init__(self, service: Service, websocket: WebSocket) -> None:
        self._service = service
        self._websocket = websocket
        self._principal = principal_of(websocket.scope)
        self._open: dict[str, Response] = {}
        self._replies: deque[bytes] = deque()
        self._unread_bytes = 0
        self._has_replies = asyncio.Event()
        self._has_replied = asyncio.Event()
        self._has_replied.set()
        self._session = ResponsesSession(
            service.model, service.backend.tokenizer, new_id=lambda: f"resp_{uuid4().hex}", clock=time
        )

    async def run(self) -> None:
        """Serve the socket until either side closes it; what is then open is cancelled."""
        await self._websocket.accept()
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._write_replies)
            code = await self._read()
            self._tasks.cancel_scope.cancel()
        if code is not None:
            with anyio.move_on_after(CLOSE_S):
                await self._websocket.close(code)

    async def _read(self) -> int | None:
        """Feeds the session until the client leaves (None), or must be cut off (a close code)."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            frame = message.get("text") or message.get("bytes") or b""
            if len(frame) > self._service.max_frame_bytes:
                return TOO_BIG
            for action in self._session.receive(frame):
                if isinstance(action, bytes):
                    self._reply(action)
                else:
                    self._start(action)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                return POLICY

    def _reply(self, frame: bytes) -> None:
        self._replies.append(frame)
        self._unread_bytes += len(frame)
        self._has_replied.clear()
        self._has_replies.set()

    async def _write_replies(self) -> None:
        while True:
            await self._has_replies.wait()
            while self._replies:
                frame = self._replies.popleft()
                await self._send(frame)
                self._unread_bytes -= len(frame)
            self._has_replies.clear()
            self._has_replied.set()

    def _start(self, action: Begin | Stop) -> None:
        if isinstance(action, Begin):
            self._tasks.start_soon(self._run_turn, action)
        elif action.turn.id in self._open:
            self._open[action.turn.id].cancel()

    async def _run_turn(self, begin: Begin) -> None:
        turn = begin.turn
        with self._service.answering():
            try:
                response = await self._service.submit(begin.generate, self._principal, turn.id)
            except Exception as exc:
                await self._perform(self._session.refused(turn, refusal(exc)))
                return
            self._open[turn.id] = response
            try:
                await self._follow(turn, response)
            finally:
                response.cancel()
                del self._open[turn.id]

    async def _follow(self, turn: Turn, response: Response) -> None:
        if turn.is_cancelled:  # while it was being tokenised
            response.cancel()
        await self._perform(self._session.began(turn))
        async for event in response.events():
            await self._perform(self._session.feed(turn, event))

    async def _perform(self, actions: Iterable[Action]) -> None:
        """What a turn does comes after the replies that were due before it, such as its own `response.queued`."""
        await self._has_replied.wait()
        for action in actions:
            if isinstance(action, bytes):
                await self._send(action)
            else:
                self._start(action)

    async def _send(self, frame: bytes) -> None:
        try:
            await self._websocket.send({"type": "websocket.send", "text": frame.decode()})
        except (WebSocketDisconnect, RuntimeError):
            # The socket is closing; the reader sees it too and cancels this task.
            await anyio.sleep_forever()
