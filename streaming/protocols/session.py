"""`WS /v1/responses`: one connection, as a machine that takes frames and gives actions.

A lane (`stream_id`) runs its turns one after another; lanes run beside each other, up to `MAX_IN_FLIGHT` turns of the
connection, and what is more waits. The caller performs the actions in their order. A turn is first opened: from then
on its answer exists, is followed, and can be cancelled. When it has been told to begin and is over, and its last frame
is sent, the caller says so with `ended`, and whether it was refused. Lanes go on when the client is gone: what was
asked for and may outlive the socket still has its turn.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import msgspec
from msgspec.structs import replace

from ...runtime.backend import Message
from ...runtime.checks import is_integer
from ...runtime.errors import EngineClosed, InvalidField, QueueFull, RequestError
from .actions import Action, Begin, Cancel, Grant, Open, Refuse, Resume, Turn
from .create import SOCKET_FIELDS, Create
from .delivery import CREDIT, Delivery
from .errors import Refusal, Refused, invalid, refusal
from .fields import HONOURED, Harmless, Table, every, honoured, parse

MAX_IN_FLIGHT = 16
MAX_WAITING = 64
MAX_LANES = 32
MAX_REMEMBERED = 64
LEAST_DEADLINE_S = 1e-6
"""What a turn is given that begins after its deadline: it ends as any that is late."""
LANE = re.compile(r"[A-Za-z0-9_.-]{1,256}")

Conversation = Callable[[str], tuple[Message, ...]]
"""What was said up to the end of a response. Raises `Refused` where it cannot be continued."""


class ResponsesSession:
    def __init__(
        self,
        served_model: str,
        conversation: Conversation,
        *,
        new_id: Callable[[], str],
        clock: Callable[[], float] = monotonic,
        check_open: Callable[[], None] = lambda: None,
    ) -> None:
        """`check_open` raises `EngineClosed` where no further turn is taken."""
        self._clock = clock
        self._check_open = check_open
        self._served_model = served_model
        self._conversation = conversation
        self._new_id = new_id
        self._lanes: dict[str | None, deque[Turn]] = {None: deque()}
        self._evicted: OrderedDict[str, None] = OrderedDict()
        self._ended: OrderedDict[str, str | None] = OrderedDict()
        self._num_in_flight = 0

    def receive(self, frame: bytes | str) -> list[Action]:
        """A frame from the client. Never raises: what is wrong with it is among the actions."""
        lane = None
        try:
            body = parse(frame)
            lane = _lane(body)
            kind = body.get("type")
            handle = _HANDLERS.get(kind) if isinstance(kind, str) else None
            if handle is None:
                raise InvalidField("type", ", ".join(map(repr, _HANDLERS)), kind)
            return handle(self, body, lane)
        except (RequestError, QueueFull, EngineClosed) as exc:
            return [refusal(exc).frame(lane)]

    def ended(self, turn: Turn, *, refused: bool = False, failed: bool = False) -> list[Action]:
        """A turn that was begun is over, or was refused, and its last frame is sent. `failed`: it broke on its way."""
        if refused or failed:
            self._evict(turn.create.request.previous_response_id, turn.lane)
        if not refused:
            _remember(self._ended, turn.id, turn.lane)
        self._lanes[turn.lane].popleft()
        self._num_in_flight -= 1
        return list(self._begin_next())

    def _evict(self, parent: Any, lane: str | None) -> None:
        """A continuation of `parent` has failed on `lane`. A fork of another lane's response leaves that as it is."""
        if isinstance(parent, str) and self._runs_on(parent, lane):
            _remember(self._evicted, parent, None)

    def _runs_on(self, response_id: str, lane: str | None) -> bool:
        """Whether a response is, or was, of a lane."""
        if response_id in self._ended:
            return self._ended[response_id] == lane
        return any(turn.id == response_id for turn in self._lanes.get(lane, ()))

    def _lane_of(self, response_id: Any) -> str | None:
        """The lane of a response of this connection."""
        is_text = isinstance(response_id, str)
        return next((lane for lane in self._lanes if is_text and self._runs_on(response_id, lane)), None)

    def withdraw(self, turn: Turn) -> bool:
        """Take a turn out of its lane where it waits. False if it has begun."""
        if not turn.is_begun:
            self._lanes[turn.lane].remove(turn)
        return not turn.is_begun

    def _create(self, body: dict[str, Any], lane: str | None) -> list[Action]:
        try:
            return self._take(body, lane)
        except (RequestError, QueueFull, EngineClosed):
            self._evict(body.get("previous_response_id"), lane)
            raise

    def _take(self, body: dict[str, Any], lane: str | None) -> list[Action]:
        self._check_open()
        self._check_lane(lane)
        create = Create(body, self._served_model, SOCKET_FIELDS)
        if sum(map(len, self._lanes.values())) - self._num_in_flight >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} responses wait on this connection; wait for some to end")
        turn = Turn(self._new_id(), create, lane, self._clock())
        self._lanes.setdefault(lane, deque()).append(turn)
        actions = list(self._begin_next())
        return [Open(turn, waits=not turn.is_begun), *actions]

    def _begin_next(self) -> Iterator[Action]:
        """Begin the first turn of each idle lane while there is room."""
        for lane in list(self._lanes.values()):
            if lane and not lane[0].is_begun and self._num_in_flight < MAX_IN_FLIGHT:
                yield self._begin(lane[0])

    def _begin(self, turn: Turn) -> Action:
        turn.is_begun = True
        self._num_in_flight += 1
        try:
            turn.history = (*self._parent(turn.create), *turn.create.messages)
            generate = turn.create.command(turn.history)
            if turn.due is not None:
                left_s = max(turn.due - self._clock(), LEAST_DEADLINE_S)
                generate = replace(generate, deadline_s=left_s)
            return Begin(turn, generate)
        except RequestError as exc:
            return Refuse(turn, refusal(exc))

    def _parent(self, create: Create) -> tuple[Message, ...]:
        parent = create.request.previous_response_id
        if parent is None:
            return ()
        if parent in self._evicted:
            raise Refused(not_found(parent))
        return self._conversation(parent)

    def _cancel(self, body: dict[str, Any], lane: str | None) -> list[Action]:
        """Cancels the response named, else the first of the lane."""
        honoured(body, CANCEL_FIELDS)
        asked = _response_id(body)
        turns = [turn for turns in self._lanes.values() for turn in turns if turn.id == asked]
        if asked is None:
            turns = [*self._lanes.get(lane, ())][:1]
            if lane not in self._lanes:
                message = "stream_id: nothing has run on this lane"
                raise Refused(invalid(message, code="response_not_found", param="stream_id", status=404))
        for turn in turns:
            self.withdraw(turn)
            return [Cancel(turn.id, turn.lane)]
        if asked is None or asked in self._ended:  # its last frame was the answer
            return []
        return [Cancel(asked, lane)]

    def _resume(self, body: dict[str, Any], lane: str | None) -> list[Action]:
        fields = honoured(body, RESUME_FIELDS)
        after = fields.get("starting_after", -1)
        if not is_integer(after) or not -1 <= after < 2**53:
            raise InvalidField("starting_after", "a sequence number", after)
        self._check_lane(lane)
        self._lanes.setdefault(lane, deque())
        credit = fields.get("credit")
        if credit is not None:
            CREDIT("credit", credit)
        delivery = Delivery(credit=credit)
        return [Resume(_response_id(fields, is_required=True) or "", after, lane, delivery)]

    def _grant(self, body: dict[str, Any], lane: str | None) -> list[Action]:
        fields = honoured(body, CREDIT_FIELDS)
        CREDIT("credit", fields.get("credit"))
        return [Grant(_response_id(fields), lane, fields["credit"])]

    def _steer(self, body: dict[str, Any], lane: str | None) -> list[Action]:
        error = {
            "type": "invalid_request_error",
            "code": "steering_not_supported",
            "message": "a running response takes no further input here",
        }
        steer = {"previous_response_id": body.get("previous_response_id"), "input": body.get("input")}
        failed = {"type": "response.steer.failed", "sequence_number": 0, "steer": steer, "error": error}
        if lane is None:
            lane = self._lane_of(steer["previous_response_id"])
        return [msgspec.json.encode(failed if lane is None else {**failed, "stream_id": lane})]

    def _check_lane(self, lane: str | None) -> None:
        if lane not in self._lanes and len(self._lanes) > MAX_LANES:
            message = f"stream_id: a connection has at most {MAX_LANES} named lanes"
            raise Refused(invalid(message, code="websocket_stream_limit_reached", param="stream_id"))


CANCEL_FIELDS: Table = {**every(HONOURED, "type", "response_id", "stream_id"), "event_id": Harmless()}
RESUME_FIELDS: Table = {**CANCEL_FIELDS, "starting_after": HONOURED, "credit": HONOURED}
CREDIT_FIELDS: Table = {**CANCEL_FIELDS, "credit": HONOURED}

_HANDLERS: dict[str, Callable[[ResponsesSession, dict[str, Any], str | None], list[Action]]] = {
    "response.create": ResponsesSession._create,
    "response.cancel": ResponsesSession._cancel,
    "response.steer": ResponsesSession._steer,
    "jitney:response.resume": ResponsesSession._resume,
    "jitney:credit": ResponsesSession._grant,
}


def not_found(parent: str) -> Refusal:
    """Of a response that cannot be continued."""
    message = f"previous_response_id: {parent[:80]!r} is not among the recent responses that are over"
    return invalid(message, code="previous_response_not_found", param="previous_response_id")


def _lane(body: dict[str, Any]) -> str | None:
    lane = body.get("stream_id")
    if lane is None or (isinstance(lane, str) and LANE.fullmatch(lane)):
        return lane
    message = "stream_id: expected 1 to 256 letters, digits, '_', '-' or '.'"
    raise Refused(invalid(message, code="invalid_stream_id", param="stream_id"))


def _response_id(body: dict[str, Any], *, is_required: bool = False) -> str | None:
    asked = body.get("response_id")
    if (asked is None and is_required) or not isinstance(asked, str | None):
        raise InvalidField("response_id", "a string", asked)
    return asked


def _remember(known: OrderedDict[str, Any], key: str, value: Any) -> None:
    known[key] = value
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
