"""What a Responses connection asks of its caller: the turns that it takes, and what is to be done with them."""

from __future__ import annotations

import msgspec

from ...runtime.backend import Message
from .create import Create
from .delivery import Delivery
from .errors import Refusal
from .generate import Generate


class Turn:
    """One response of the connection, from its `response.create`, which came at `arrival`, to its last frame. `due` is
    its deadline, of the same clock."""

    def __init__(self, turn_id: str, create: Create, lane: str | None, arrival: float) -> None:
        self.id = turn_id
        self.create = create
        self.lane = lane
        deadline_s = create.request.deadline_s()
        self.due = None if deadline_s is None else arrival + deadline_s
        self.delivery = create.request.delivery()
        self.history: tuple[Message, ...] = ()
        self.is_begun = False


class Open(msgspec.Struct, frozen=True):
    """The turn exists: register it and send what becomes of it. `waits`: `response.queued` first."""

    turn: Turn
    waits: bool


class Begin(msgspec.Struct, frozen=True):
    """Submit this to the engine under the turn's id."""

    turn: Turn
    generate: Generate


class Refuse(msgspec.Struct, frozen=True):
    """The turn will not begin: its readers are to hear why."""

    turn: Turn
    why: Refusal


class Cancel(msgspec.Struct, frozen=True):
    """Cancel a response, of this connection or of another of the same principal; its last frame is the answer."""

    response_id: str
    lane: str | None


class Resume(msgspec.Struct, frozen=True):
    """Send a response's events after `after`, then live ones, on this lane."""

    response_id: str
    after: int
    lane: str | None
    delivery: Delivery


class Grant(msgspec.Struct, frozen=True):
    """The client can take so many more deltas of a response, or of what runs on a lane."""

    response_id: str | None
    lane: str | None
    credit: int


Action = bytes | Open | Begin | Refuse | Cancel | Resume | Grant
