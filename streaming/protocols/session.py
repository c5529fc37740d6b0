"""`WS /v1/responses`: one connection, as a machine that takes frames and events and gives actions.

A lane (`stream_id`) runs its turns one after another; lanes run beside each other, up to `MAX_IN_FLIGHT` turns of the
connection, and what is more waits. The caller performs the actions in their order: it sends bytes, submits turns, and
stops turns. For each `Begin` it then calls `began`, and `feed` with every event; or `refused`, once.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ...runtime.backend import Message, Tokenizer
from ...runtime.errors import InvalidField, QueueFull, RequestError
from ...runtime.events import Event
from .create import Create
from .errors import Refusal, Refused, invalid, refusal
from .fields import HARMLESS, HONOURED, Table, honoured, parse
from .generate import Generate
from .responses import ResponseEvents

MAX_IN_FLIGHT = 16
MAX_WAITING = 64
MAX_LANES = 32
MAX_CACHED = 64
LANE = re.compile(r"[A-Za-z0-9_.-]{1,256}")


class Turn:
    """One response of the connection, from its `response.create` to its terminal frame."""

    def __init__(self, create: Create, lane: str | None, events: ResponseEvents) -> None:
        self.create = create
        self.lane = lane
        self.events = events
        self.id = events.id
        self.history: list[Message] = []
        self.is_begun = False
        self.is_cancelled = False


class Begin(msgspec.Struct, frozen=True):
    """Submit this to the engine under the turn's id."""

    turn: Turn
    generate: Generate


class Stop(msgspec.Struct, frozen=True):
    """Cancel this turn; its terminal frame follows from the engine's events."""

    turn: Turn


Action = bytes | Begin | Stop


class Cached(msgspec.Struct, frozen=True):
    """A response that a later one may continue."""

    lane: str | None
    messages: tuple[Message, ...]


class ResponsesSession:
    def __init__(
        self,
        served_model: str,
        tokenizer: Tokenizer,
        *,
        new_id: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._served_model = served_model
        self._tokenizer = tokenizer
        self._new_id = new_id
        self._clock = clock
        self._lanes: dict[str | None, deque[Turn]] = {None: deque()}
        self._cache: OrderedDict[str, Cached] = OrderedDict()
        self._num_in_flight = 0

    def receive(self, frame: bytes | str) -> list[Action]:
        """A frame from the client. Never raises: what is wrong with it is among the actions."""
        lane = None
        try:
            body = parse(frame)
            lane = self._lane(body)
            kind = body.get("type")
            if kind == "response.create":
                return self._create(body, lane)
            if kind == "response.cancel":
                return self._cancel(body, lane)
            if kind == "response.steer":
                return [_no_steering(body)]
            expected = "'response.create', 'response.cancel' or 'response.steer'"
            raise InvalidField("type", expected, kind)
        except (RequestError, QueueFull) as exc:
            return [refusal(exc).frame(lane)]

    def began(self, turn: Turn) -> list[Action]:
        """The engine accepted the turn."""
        return [*turn.events.created()]

    def refused(self, turn: Turn, why: Refusal) -> list[Action]:
        """The engine refused the turn, or it could not be submitted."""
        parent = turn.create.request.previous_response_id or ""
        if parent in self._cache and self._cache[parent].lane == turn.lane:
            del self._cache[parent]
        return [why.frame(turn.lane), *self._end(turn)]

    def feed(self, turn: Turn, event: Event) -> list[Action]:
        """An event of a turn that began."""
        frames: list[Action] = [*turn.events.feed(event, self._tokenizer)]
        if not turn.events.is_done:
            return frames
        if event.error is None and event.finish_reason != "error":
            self._keep(turn)
        return frames + self._end(turn)

    def _create(self, body: dict[str, Any], lane: str | None) -> list[Action]:
        if lane not in self._lanes and len(self._lanes) > MAX_LANES:
            message = f"stream_id: a connection has at most {MAX_LANES} named lanes"
            raise Refused(invalid(message, code="websocket_stream_limit_reached", param="stream_id"))
        create = Create(body, self._served_model)
        if sum(map(len, self._lanes.values())) - self._num_in_flight >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} responses wait on this connection; wait for some to end")
        events = ResponseEvents(
            self._new_id(), create, model=self._served_model, created_at=self._clock(), stream_id=lane
        )
        turn = Turn(create, lane, events)
        self._lanes.setdefault(lane, deque()).append(turn)
        actions = list(self._begin_next())
        return actions if turn.is_begun else [events.queued(), *actions]

    def _begin_next(self) -> Iterator[Action]:
        """Begin the first turn of each idle lane while there is room."""
        for lane in list(self._lanes.values()):
            while lane and not lane[0].is_begun and self._num_in_flight < MAX_IN_FLIGHT:
                yield from self._begin(lane[0])

    def _begin(self, turn: Turn) -> list[Action]:
        parent = turn.create.request.previous_response_id
        cached = self._cache.get(parent or "")
        history = [*(cached.messages if cached else ()), *turn.create.messages]
        generate = turn.create.generate(history)
        turn.is_begun = True
        turn.history = history
        self._num_in_flight += 1
        if parent is not None and cached is None:
            message = f"previous_response_id: {parent[:80]!r} is not among this connection's recent responses"
            missing = invalid(message, code="previous_response_not_found", param="previous_response_id")
            return self.refused(turn, missing)
        if parent is not None:
            self._cache.move_to_end(parent)
        return [Begin(turn, generate)]

    def _end(self, turn: Turn) -> list[Action]:
        self._lanes[turn.lane].popleft()
        self._num_in_flight -= 1
        return list(self._begin_next())

    def _keep(self, turn: Turn) -> None:
        answer: Message = {"role": "assistant", "content": turn.events.text}
        self._cache[turn.id] = Cached(turn.lane, (*turn.history, answer))
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)

    def _cancel(self, body: dict[str, Any], lane: str | None) -> list[Action]:
        """Stops the response named, else the first of the lane. One that has already ended needs no answer: its
        terminal frame was it."""
        honoured(body, _CANCEL)
        asked = body.get("response_id")
        if asked is not None and not isinstance(asked, str):
            raise InvalidField("response_id", "a string", asked)
        turns = [turn for turns in self._lanes.values() for turn in turns if turn.id == asked]
        if asked is None:
            turns = [*self._lanes.get(lane, ())][:1]
        if turns:
            return self._stop(turns[0])
        if asked in self._cache or (asked is None and lane in self._lanes):
            return []
        message = "no such response on this connection"
        param = "stream_id" if asked is None else "response_id"
        raise Refused(invalid(message, code="response_not_found", param=param, status=404))

    def _stop(self, turn: Turn) -> list[Action]:
        turn.is_cancelled = True
        if turn.is_begun:
            return [Stop(turn)]
        self._lanes[turn.lane].remove(turn)
        return [turn.events.terminal(Event(turn.id, 0, "done", finish_reason="cancelled"))]

    def _lane(self, body: dict[str, Any]) -> str | None:
        lane = body.get("stream_id")
        if lane is None or (isinstance(lane, str) and LANE.fullmatch(lane)):
            return lane
        message = "stream_id: expected 1 to 256 letters, digits, '_', '-' or '.'"
        raise Refused(invalid(message, code="invalid_stream_id", param="stream_id"))


_CANCEL: Table = {"type": HONOURED, "response_id": HONOURED, "stream_id": HONOURED, "event_id": HARMLESS}


def _no_steering(body: dict[str, Any]) -> bytes:
    error = {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "a running response takes no further input here",
    }
    steer = {"previous_response_id": body.get("previous_response_id"), "input": body.get("input")}
    return msgspec.json.encode(
        {"type": "response.steer.failed", "sequence_number": 0, "steer": steer, "error": error}
    )
