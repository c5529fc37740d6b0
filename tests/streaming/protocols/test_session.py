"""One Responses connection without a socket: frames in, actions out."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest

from jitney.runtime.errors import InvalidField
from jitney.streaming.protocols.actions import Begin, Cancel, Grant, Open, Refuse, Resume
from jitney.streaming.protocols.create import Create
from jitney.streaming.protocols.errors import Refused
from jitney.streaming.protocols.session import (
    LEAST_DEADLINE_S,
    MAX_IN_FLIGHT,
    MAX_LANES,
    MAX_WAITING,
    ResponsesSession,
    not_found,
)


class Desk:
    """A session and what came out of it."""

    def __init__(self) -> None:
        ids = itertools.count(1)
        self.said: dict[str, tuple[Any, ...]] = {}
        self.now = 0.0
        self.session = ResponsesSession(
            "m", self.conversation, new_id=lambda: f"resp_{next(ids)}", clock=lambda: self.now
        )
        self.opened: list[Open] = []
        self.begun: list[Begin] = []
        self.refused: list[Refuse] = []
        self.other: list[Any] = []
        self.sent: list[Any] = []

    def conversation(self, response_id: str) -> tuple[Any, ...]:
        if response_id not in self.said:
            raise Refused(not_found(response_id))
        return self.said[response_id]

    def receive(self, **frame: Any) -> list[Any]:
        return self.take(self.session.receive(msgspec.json.encode(frame)))

    def create(self, **fields: Any) -> list[Any]:
        return self.receive(type="response.create", **{"input": "hi", **fields})

    def take(self, actions: Any) -> list[Any]:
        """Performs actions; gives the frames among them."""
        frames = []
        for action in actions:
            if isinstance(action, bytes):
                frames.append(msgspec.json.decode(action))
            elif isinstance(action, Open):
                self.opened.append(action)
            elif isinstance(action, Begin):
                self.begun.append(action)
            elif isinstance(action, Refuse):
                self.refused.append(action)
            else:
                self.other.append(action)
        self.sent += frames
        return frames

    def end(
        self, begin: Any, answer: str = "yes", *, refused: bool = False, failed: bool = False
    ) -> list[Any]:
        turn = begin.turn
        if not refused and not failed:
            self.said[turn.id] = (*turn.history, {"role": "assistant", "content": answer})
        return self.take(self.session.ended(turn, refused=refused, failed=failed))


def test_a_lane_is_first_in_first_out_and_lanes_run_beside_each_other() -> None:
    desk = Desk()
    desk.create(stream_id="a")
    desk.create(stream_id="a")
    desk.create(stream_id="b")
    desk.create()
    assert [begin.turn.id for begin in desk.begun] == ["resp_1", "resp_3", "resp_4"]
    assert [opened.waits for opened in desk.opened] == [False, True, False, False]
    desk.end(desk.begun[0])
    assert desk.begun[-1].turn.id == "resp_2"


def test_sixteen_in_flight_then_queued_then_refused() -> None:
    desk = Desk()
    for number in range(MAX_IN_FLIGHT + 2):
        desk.create(stream_id=f"lane-{number}")
    assert len(desk.begun) == MAX_IN_FLIGHT
    assert [opened.waits for opened in desk.opened] == [False] * MAX_IN_FLIGHT + [True] * 2
    desk.end(desk.begun[3])
    assert len(desk.begun) == MAX_IN_FLIGHT + 1
    for _ in range(MAX_WAITING - 1):
        desk.create(stream_id="lane-0")
    (full,) = desk.create(stream_id="lane-0")
    assert (full["status"], full["error"]["code"], full["stream_id"]) == (
        429,
        "rate_limit_exceeded",
        "lane-0",
    )
    assert full["error"]["headers"] == {"retry-after": "1"}


def test_thirty_two_named_lanes_and_the_default() -> None:
    desk = Desk()
    for number in range(MAX_LANES):
        desk.create(stream_id=f"lane-{number}")
        desk.end(desk.begun[-1])
    desk.create()
    (refused,) = desk.create(stream_id="one-more")
    assert refused["error"]["code"] == "websocket_stream_limit_reached"
    assert (refused["type"], refused["status"], refused["stream_id"]) == ("error", 400, "one-more")
    (refused,) = desk.receive(type="jitney:response.resume", response_id="x", stream_id="one-more")
    assert refused["error"]["code"] == "websocket_stream_limit_reached"


@pytest.mark.parametrize("lane", ["", "a b", "a" * 257, "é", 3, ["a"], "a\n"])
def test_stream_ids_are_checked(lane: Any) -> None:
    (refused,) = Desk().create(stream_id=lane)
    assert refused["error"]["code"] == "invalid_stream_id" and "stream_id" not in refused


def test_chaining_within_and_across_lanes() -> None:
    desk = Desk()
    desk.create(input="one", instructions="be brief", stream_id="a")
    desk.end(desk.begun[0], "1")
    desk.create(input="two", previous_response_id="resp_1", stream_id="a")
    desk.create(input="fork", previous_response_id="resp_1", stream_id="b", instructions="shout")
    history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]
    two, fork = (begin.generate.prompt for begin in desk.begun[1:])
    assert two == [*history, {"role": "user", "content": "two"}]
    assert fork == [{"role": "system", "content": "shout"}, *history, {"role": "user", "content": "fork"}]
    assert desk.begun[1].turn.create.facts(0.0).previous_response_id == "resp_1"


def test_a_continuation_queued_behind_its_parent_finds_it() -> None:
    desk = Desk()
    desk.create(input="one")
    desk.create(input="two", previous_response_id="resp_1")
    desk.end(desk.begun[0], "1")
    assert len(desk.begun[1].generate.prompt) == 3


def test_an_unknown_parent_is_refused_and_the_lane_goes_on() -> None:
    desk = Desk()
    desk.create(previous_response_id="resp_x", stream_id="a")
    (refused,) = desk.refused
    assert (refused.why.status, refused.why.code) == (400, "previous_response_not_found")
    desk.create(stream_id="a")
    assert desk.begun == []
    desk.end(refused, refused=True)
    assert len(desk.begun) == 1


def test_a_failed_continuation_evicts_its_parent_on_the_same_lane_only() -> None:
    desk = Desk()
    desk.create(stream_id="a")
    desk.end(desk.begun[0])
    for lane in ("b", "a"):
        desk.create(previous_response_id="resp_1", stream_id=lane)
        assert desk.refused == []
        desk.end(desk.begun[-1], refused=True)
    desk.create(previous_response_id="resp_1", stream_id="a")
    assert desk.refused[0].why.code == "previous_response_not_found"
    other = Desk()
    other.said = desk.said
    other.create(previous_response_id="resp_1")
    assert len(other.begun) == 1, "evicted from the connection, not from the server"


@pytest.mark.parametrize("how", ["refused", "failed", "undecoded", "full"])
def test_however_a_continuation_fails_its_parent_is_evicted_from_its_lane_only(how: str) -> None:
    for lane, is_evicted in (("b", False), ("a", True)):
        desk = Desk()
        desk.create(stream_id="a")
        desk.end(desk.begun[0])
        if how in ("refused", "failed"):
            desk.create(previous_response_id="resp_1", stream_id=lane)
            desk.end(desk.begun[-1], refused=how == "refused", failed=how == "failed")
        elif how == "undecoded":
            (error,) = desk.create(previous_response_id="resp_1", stream_id=lane, temperature="hot")
            assert error["status"] == 400
        else:
            for _ in range(MAX_WAITING + 1):
                desk.create(stream_id="c")
            (error,) = desk.create(previous_response_id="resp_1", stream_id=lane)
            assert error["status"] == 429
            desk.end(desk.begun[-1])
        desk.create(previous_response_id="resp_1", stream_id="d")
        assert [refused.why.code for refused in desk.refused] == ["previous_response_not_found"] * is_evicted


def test_a_continuation_that_is_cancelled_or_has_no_lane_evicts_nothing() -> None:
    desk = Desk()
    desk.create()
    desk.end(desk.begun[0])
    desk.create(previous_response_id="resp_1")
    desk.receive(type="response.cancel")
    desk.end(desk.begun[1])
    (error,) = desk.create(previous_response_id="resp_1", stream_id="no lane")
    assert error["error"]["code"] == "invalid_stream_id"
    desk.create(previous_response_id="resp_1")
    assert len(desk.begun) == 3 and not desk.refused


def test_a_parent_that_runs_yet_is_evicted_as_well() -> None:
    desk = Desk()
    desk.create(stream_id="a")
    desk.create(previous_response_id="resp_1", stream_id="a", temperature="hot")
    desk.create(previous_response_id="resp_1", stream_id="a")
    desk.end(desk.begun[0])
    assert desk.refused[0].why.code == "previous_response_not_found"


def test_cancel_by_id_by_lane_and_in_the_queue() -> None:
    desk = Desk()
    desk.create(stream_id="a")
    desk.create(stream_id="a")
    desk.create()
    assert desk.receive(type="response.cancel", response_id="resp_2") == []
    assert desk.receive(type="response.cancel", stream_id="a") == []
    assert desk.receive(type="response.cancel") == []
    assert desk.other == [Cancel("resp_2", "a"), Cancel("resp_1", "a"), Cancel("resp_3", None)]
    desk.end(desk.begun[0])
    assert len(desk.begun) == 2, "the one that was cancelled in the queue has no turn"
    assert desk.receive(type="response.cancel", response_id="resp_1") == []
    assert desk.receive(type="response.cancel", stream_id="a") == []
    assert len(desk.other) == 3, "its last frame was the answer"
    desk.receive(type="response.cancel", response_id="resp_x", stream_id="c")
    assert desk.other[3:] == [Cancel("resp_x", "c")], "perhaps another connection's"
    (missing,) = desk.receive(type="response.cancel", stream_id="b")
    assert (missing["status"], missing["error"]["code"]) == (404, "response_not_found")
    assert desk.receive(type="response.cancel", response_id=3)[0]["error"]["param"] == "response_id"


def test_resume_and_credit() -> None:
    desk = Desk()
    resume = {"type": "jitney:response.resume", "response_id": "resp_9"}
    desk.receive(**resume)
    desk.receive(**resume, starting_after=17, stream_id="a", credit=4)
    desk.receive(type="jitney:credit", response_id="resp_9", credit=2)
    desk.receive(type="jitney:credit", stream_id="a", credit=1)
    first, second, *grants = desk.other
    assert isinstance(first, Resume) and (first.after, first.lane, first.delivery.credit) == (-1, None, None)
    assert (second.after, second.lane, second.delivery.credit) == (17, "a", 4)
    assert grants == [Grant("resp_9", None, 2), Grant(None, "a", 1)]
    for wrong, param in (
        ({"type": "jitney:response.resume"}, "response_id"),
        ({**resume, "starting_after": -2}, "starting_after"),
        ({**resume, "starting_after": True}, "starting_after"),
        ({**resume, "starting_after": 2**60}, "starting_after"),
        ({**resume, "credit": -1}, "credit"),
        ({**resume, "wibble": 1}, "wibble"),
        ({"type": "jitney:credit"}, "credit"),
    ):
        (error,) = desk.receive(**wrong)
        assert (error["status"], error["error"]["param"]) == (400, param)


@pytest.mark.parametrize("deadline", [0, -1, -0.5, 10**400, "soon", True])
def test_a_bad_deadline_is_refused_at_once_and_leaves_no_trace(deadline: Any) -> None:
    desk = Desk()
    desk.create(stream_id="busy")
    desk.create(stream_id="other")
    for lane in ("idle", "busy"):
        for _ in range(MAX_IN_FLIGHT + 1):
            (frame,) = desk.create(stream_id=lane, deadline_ms=deadline)
            assert (frame["type"], frame["status"], frame["stream_id"]) == ("error", 400, lane)
            assert frame["error"]["param"] == "deadline_ms"
    desk.create(stream_id="idle", deadline_ms=5)
    desk.create(stream_id="busy")
    assert [begin.turn.lane for begin in desk.begun] == ["busy", "other", "idle"]
    for begin in list(desk.begun):
        desk.end(begin)
    assert [begin.turn.lane for begin in desk.begun] == ["busy", "other", "idle", "busy"]
    assert desk.begun[2].generate.deadline_s == 0.005


def test_a_deadline_counts_from_the_frames_arrival() -> None:
    desk = Desk()
    desk.create()
    desk.create(deadline_ms=5000)
    desk.create(jitney={"deadline_ms": 5000})
    desk.now = 3.0
    desk.end(desk.begun[0])
    desk.now = 7.0
    desk.end(desk.begun[1])
    assert [begin.generate.deadline_s for begin in desk.begun] == [None, 2.0, LEAST_DEADLINE_S]


def test_a_turn_is_withdrawn_while_it_waits_only() -> None:
    desk = Desk()
    desk.create()
    desk.create()
    running, waiting = (opened.turn for opened in desk.opened)
    assert not desk.session.withdraw(running) and desk.session.withdraw(waiting)
    desk.end(desk.begun[0])
    assert len(desk.begun) == 1


def test_a_turn_that_cannot_be_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    def unbuildable(*args: Any) -> Any:
        raise InvalidField("deadline_ms", "a positive number of milliseconds", 0)

    with monkeypatch.context() as patched:
        patched.setattr(Create, "command", unbuildable)
        desk.create(stream_id="a")
    assert desk.refused[0].why.param == "deadline_ms"
    desk.end(desk.refused[0], refused=True)
    for number in range(MAX_IN_FLIGHT):
        desk.create(stream_id=f"lane-{number}")
    assert len(desk.begun) == MAX_IN_FLIGHT


def test_steering_is_refused_as_specified() -> None:
    desk = Desk()
    (steer,) = desk.receive(type="response.steer", previous_response_id="resp_1", input="more")
    assert (steer["type"], steer["error"]["code"]) == ("response.steer.failed", "steering_not_supported")
    assert (
        steer["steer"] == {"previous_response_id": "resp_1", "input": "more"} and "sequence_number" in steer
    )


def test_a_refused_steer_says_its_lane() -> None:
    desk = Desk()
    for lane in ("a", "b", None):
        desk.create(stream_id=lane)
    desk.end(desk.begun[0])
    steered = {"resp_1": "a", "resp_2": "b", "resp_3": None, "resp_x": None, "": None}
    for response_id, lane in steered.items():
        (failed,) = desk.receive(type="response.steer", previous_response_id=response_id)
        assert failed.get("stream_id") == lane and failed["type"] == "response.steer.failed"
    (failed,) = desk.receive(type="response.steer", previous_response_id=["resp_1"], stream_id="c")
    assert failed["stream_id"] == "c"


def test_a_warm_up_prefills_and_can_be_continued() -> None:
    desk = Desk()
    desk.create(generate=False, input=[], instructions="be brief", stream_id="a")
    (begin,) = desk.begun
    assert begin.generate.warm_up and begin.generate.prompt == [{"role": "system", "content": "be brief"}]
    assert begin.turn.create.facts(0.0).is_warm_up
    (empty,) = desk.create(generate=False, input=[])
    assert empty["error"]["param"] == "input"


def test_models_are_checked() -> None:
    (refused,) = Desk().create(model="gpt-5")
    assert (refused["status"], refused["error"]["code"], refused["error"]["param"]) == (
        404,
        "model_not_found",
        "model",
    )


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_frames_keeps_the_promises(seed: int) -> None:
    """Every accepted create is begun, refused or cancelled once; no lane ever runs two turns."""
    rng, desk = random.Random(seed), Desk()
    running: dict[str, Any] = {}
    creates = over = 0
    for step in range(400):
        due = [*desk.begun, *desk.refused]
        for begin in due:
            if begin.turn.id not in running and begin.turn.id not in desk.said:
                assert begin.turn.lane not in {other.turn.lane for other in running.values()}
                running[begin.turn.id] = begin
                desk.said[begin.turn.id] = ()
        assert len(running) <= MAX_IN_FLIGHT
        choice = rng.random() if step < 300 else 0.9
        if choice < 0.4:
            creates += 1
            lane = rng.choice([None, *(f"l{i}" for i in range(20))])
            parent = rng.choice([None, f"resp_{rng.randrange(1, creates + 2)}"])
            desk.create(stream_id=lane, previous_response_id=parent)
        elif choice < 0.5 and creates:
            desk.receive(type="response.cancel", response_id=f"resp_{rng.randrange(1, creates + 1)}")
        elif running:
            begin = running.pop(rng.choice(list(running)))
            desk.end(begin, refused=isinstance(begin, Refuse) or rng.random() < 0.2)
            over += 1
    begun = {begin.turn.id for begin in [*desk.begun, *desk.refused]}
    never = {action.response_id for action in desk.other} - begun
    errors = [frame for frame in desk.sent if frame["type"] == "error"]
    assert not running and over == len(begun)
    assert len(begun) + len(never & {opened.turn.id for opened in desk.opened}) + len(errors) == creates
