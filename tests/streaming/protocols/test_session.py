"""One Responses connection without a socket: frames and events in, actions out."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest

from jitney.runtime.errors import EngineClosed, InvalidField, QueueFull
from jitney.runtime.testing import ByteTokenizer
from jitney.streaming.protocols.create import Create
from jitney.streaming.protocols.errors import refusal
from jitney.streaming.protocols.session import (
    MAX_CACHED,
    MAX_IN_FLIGHT,
    MAX_LANES,
    MAX_WAITING,
    Begin,
    ResponsesSession,
    Stop,
)

GOLDEN = [
    ("response.created", 1),
    ("response.in_progress", 2),
    ("response.output_item.added", 3),
    ("response.content_part.added", 4),
    ("response.output_text.delta", 5),
    ("response.output_text.delta", 6),
    ("response.output_text.delta", 7),
    ("response.output_text.done", 8),
    ("response.content_part.done", 9),
    ("response.output_item.done", 10),
    ("response.completed", 11),
]


class Desk:
    """A session and what came out of it."""

    def __init__(self) -> None:
        ids = itertools.count(1)
        self.session = ResponsesSession(
            "m", ByteTokenizer(), new_id=lambda: f"resp_{next(ids)}", clock=lambda: 7.0
        )
        self.begun: list[Begin] = []
        self.stopped: list[Any] = []
        self.sent: list[Any] = []

    def receive(self, **frame: Any) -> list[Any]:
        return self.take(self.session.receive(msgspec.json.encode(frame)))

    def create(self, **fields: Any) -> list[Any]:
        return self.receive(type="response.create", **{"input": "hi", **fields})

    def take(self, actions: Any) -> list[Any]:
        """Performs actions; gives the frames among them."""
        frames = []
        for action in actions:
            if isinstance(action, Begin):
                self.begun.append(action)
            elif isinstance(action, Stop):
                self.stopped.append(action.turn)
            else:
                frames.append(msgspec.json.decode(action))
        self.sent += frames
        return frames

    def play(self, begin: Begin, *events: Any) -> list[Any]:
        frames = self.take(self.session.began(begin.turn))
        for event in events:
            frames += self.take(self.session.feed(begin.turn, event))
        return frames

    def answer(self, begin: Begin, story: Any, text: str = "yes") -> list[Any]:
        s = story()
        return self.play(begin, s.delta(text), s.finish(), s.done())


def test_the_events_of_a_text_answer(story: Any) -> None:
    desk, s = Desk(), story()
    assert desk.create(stream_id="a", metadata={"k": "v"}, temperature=0, stream=True) == []
    frames = desk.play(desk.begun[0], s.delta("He"), s.delta("llo"), s.finish("stop_token", "!"), s.done())
    assert [(frame["type"], frame["sequence_number"]) for frame in frames] == GOLDEN
    assert {frame["stream_id"] for frame in frames} == {"a"}
    created, item, part, deltas = frames[0], frames[2], frames[3], frames[4:7]
    assert created["response"]["status"] == "in_progress" and created["response"]["output"] == []
    assert item["item"] == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert part.items() >= {**place, "part": empty}.items()
    assert [delta["delta"] for delta in deltas] == ["He", "llo", "!"]
    whole = {**empty, "text": "Hello!"}
    assert frames[7]["text"] == "Hello!" and frames[8]["part"] == whole
    done_item = {**item["item"], "status": "completed", "content": [whole]}
    assert frames[9]["item"] == done_item
    response = frames[10]["response"]
    assert response["output"] == [done_item] and response["status"] == "completed"
    assert response["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 8,
    }
    assert (response["id"], response["model"], response["metadata"]) == ("resp_1", "m", {"k": "v"})
    assert response["completed_at"] == 7.5 and response["jitney"]["finish_reason"] == "stop_token"


def test_sequence_numbers_do_not_depend_on_how_deltas_were_merged(story: Any) -> None:
    numbers = []
    for merged in (False, True):
        desk, s = Desk(), story()
        desk.create()
        deltas = [s.delta("a"), s.delta("b")]
        last = [s.finish("stop_token", "c"), s.done()]
        if merged:
            deltas = [msgspec.structs.replace(deltas[1], text="ab")]
        frames = desk.play(desk.begun[0], *deltas, *last)
        numbers.append([frame["sequence_number"] for frame in frames])
        assert numbers[-1] == sorted(set(numbers[-1]))
    assert set(numbers[1]) == set(numbers[0]) - {5}


@pytest.mark.parametrize(
    ("reason", "error", "kind", "status", "detail"),
    [
        ("length", None, "response.incomplete", "incomplete", "max_output_tokens"),
        ("cancelled", None, "response.incomplete", "cancelled", "cancelled"),
        ("deadline", None, "response.incomplete", "incomplete", "deadline"),
        ("error", "boom", "response.failed", "failed", None),
    ],
)
@pytest.mark.parametrize("has_text", [True, False])
def test_other_endings(
    story: Any, reason: Any, error: Any, kind: str, status: str, detail: Any, has_text: bool
) -> None:
    desk, s = Desk(), story()
    desk.create()
    deltas = [s.delta("half")] if has_text else []
    frames = desk.play(desk.begun[0], *deltas, s.finish(reason), s.done(reason, error))
    response = frames[-1]["response"]
    assert (frames[-1]["type"], response["status"]) == (kind, status)
    assert (response["incomplete_details"] or {"reason": None})["reason"] == detail
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == ("half" if has_text else "")
    assert (response["error"] or {}).get("message") == error
    assert "stream_id" not in frames[-1]


def test_an_item_left_open_by_the_engine_is_closed(story: Any) -> None:
    desk, s = Desk(), story()
    desk.create()
    frames = desk.play(desk.begun[0], s.delta("half"), s.done("error", "boom"))
    assert [frame["type"] for frame in frames[-2:]] == ["response.output_item.done", "response.failed"]
    numbers = [frame["sequence_number"] for frame in frames]
    assert numbers == sorted(set(numbers))


def test_a_lane_is_first_in_first_out_and_lanes_run_beside_each_other(story: Any) -> None:
    desk = Desk()
    desk.create(stream_id="a")
    assert desk.create(stream_id="a")[0]["type"] == "response.queued"
    desk.create(stream_id="b")
    desk.create()
    assert [begin.turn.id for begin in desk.begun] == ["resp_1", "resp_3", "resp_4"]
    desk.answer(desk.begun[0], story)
    assert desk.begun[-1].turn.id == "resp_2"


def test_sixteen_in_flight_then_queued_then_refused(story: Any) -> None:
    desk = Desk()
    for number in range(MAX_IN_FLIGHT + 2):
        desk.create(stream_id=f"lane-{number}")
    assert len(desk.begun) == MAX_IN_FLIGHT
    assert [frame["type"] for frame in desk.sent] == ["response.queued"] * 2
    desk.answer(desk.begun[3], story)
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


def test_thirty_two_named_lanes_and_the_default(story: Any) -> None:
    desk = Desk()
    for number in range(MAX_LANES):
        desk.create(stream_id=f"lane-{number}")
        desk.answer(desk.begun[-1], story)
    desk.create()
    (refused,) = desk.create(stream_id="one-more")
    assert refused["error"]["code"] == "websocket_stream_limit_reached"
    assert (refused["type"], refused["status"], refused["stream_id"]) == ("error", 400, "one-more")


@pytest.mark.parametrize("lane", ["", "a b", "a" * 257, "é", 3, ["a"], "a\n"])
def test_stream_ids_are_checked(lane: Any) -> None:
    (refused,) = Desk().create(stream_id=lane)
    assert refused["error"]["code"] == "invalid_stream_id" and "stream_id" not in refused


def test_chaining_within_and_across_lanes(story: Any) -> None:
    desk = Desk()
    desk.create(input="one", instructions="be brief", stream_id="a")
    desk.answer(desk.begun[0], story, "1")
    desk.create(input="two", previous_response_id="resp_1", stream_id="a")
    desk.create(input="fork", previous_response_id="resp_1", stream_id="b", instructions="shout")
    history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]
    two, fork = (begin.generate.prompt for begin in desk.begun[1:])
    assert two == [*history, {"role": "user", "content": "two"}]
    assert fork == [{"role": "system", "content": "shout"}, *history, {"role": "user", "content": "fork"}]
    assert desk.play(desk.begun[1])[0]["response"]["previous_response_id"] == "resp_1"


def test_a_continuation_queued_behind_its_parent_finds_it(story: Any) -> None:
    desk = Desk()
    desk.create(input="one")
    desk.create(input="two", previous_response_id="resp_1")
    desk.answer(desk.begun[0], story, "1")
    assert len(desk.begun[1].generate.prompt) == 3


def test_an_unknown_parent_is_refused_and_the_lane_goes_on() -> None:
    desk = Desk()
    (refused,) = desk.create(previous_response_id="resp_x", stream_id="a")
    assert (refused["status"], refused["error"]["code"]) == (400, "previous_response_not_found")
    assert refused["stream_id"] == "a"
    desk.create(stream_id="a")
    assert len(desk.begun) == 1


def test_a_failed_continuation_evicts_its_parent_on_the_same_lane_only(story: Any) -> None:
    desk = Desk()
    desk.create(stream_id="a")
    desk.answer(desk.begun[0], story)
    for lane in ("b", "a"):
        desk.create(previous_response_id="resp_1", stream_id=lane)
        (frame,) = desk.take(desk.session.refused(desk.begun[-1].turn, refusal(QueueFull("full"))))
        assert (frame["status"], frame["stream_id"]) == (429, lane)
    (gone,) = desk.create(previous_response_id="resp_1", stream_id="a")
    assert gone["error"]["code"] == "previous_response_not_found"


def test_the_cache_forgets_the_oldest_and_failed_ones(story: Any) -> None:
    desk, s = Desk(), story()
    for _ in range(MAX_CACHED + 1):
        desk.create()
        desk.answer(desk.begun[-1], story)
    desk.create()
    desk.play(desk.begun[-1], s.finish("error"), s.done("error", "boom"))
    failed = desk.begun[-1].turn.id
    for parent, is_kept in (("resp_1", False), ("resp_2", True), (failed, False)):
        begun = len(desk.begun)
        desk.create(previous_response_id=parent)
        assert (len(desk.begun) > begun) == is_kept
        if is_kept:
            desk.answer(desk.begun[-1], story)


def test_cancel_by_id_by_lane_and_in_the_queue(story: Any) -> None:
    desk = Desk()
    desk.create(stream_id="a")
    desk.create(stream_id="a")
    desk.create()
    assert desk.receive(type="response.cancel", response_id="resp_2")[0]["response"]["status"] == "cancelled"
    assert desk.receive(type="response.cancel", stream_id="a") == []
    assert desk.receive(type="response.cancel") == []
    assert [turn.id for turn in desk.stopped] == ["resp_1", "resp_3"]
    desk.answer(desk.begun[0], story)
    assert desk.receive(type="response.cancel", response_id="resp_1") == [], (
        "its terminal frame was the answer"
    )
    assert desk.receive(type="response.cancel", stream_id="a") == []
    for wrong in ({"response_id": "resp_x"}, {"stream_id": "b"}):
        (missing,) = desk.receive(type="response.cancel", **wrong)
        assert (missing["status"], missing["error"]["code"]) == (404, "response_not_found")
    assert desk.receive(type="response.cancel", response_id=3)[0]["error"]["param"] == "response_id"


def test_a_refusal_of_the_engine_frees_the_lane() -> None:
    desk = Desk()
    desk.create()
    desk.create()
    (frame,) = desk.take(desk.session.refused(desk.begun[0].turn, refusal(EngineClosed("draining"))))
    assert frame["status"] == 503 and len(desk.begun) == 2


@pytest.mark.parametrize("deadline", [0, -1, -0.5, 10**400, "soon", True])
def test_a_bad_deadline_is_refused_at_once_and_leaves_no_trace(story: Any, deadline: Any) -> None:
    desk = Desk()
    desk.create(stream_id="busy")
    desk.create(stream_id="other")
    for lane in ("idle", "busy"):
        for _ in range(MAX_IN_FLIGHT + 1):
            (frame,) = desk.create(stream_id=lane, deadline_ms=deadline)
            assert (frame["type"], frame["status"], frame["stream_id"]) == ("error", 400, lane)
            assert frame["error"]["param"] == "deadline_ms"
    desk.create(stream_id="idle", deadline_ms=5)
    assert desk.create(stream_id="busy")[0]["type"] == "response.queued"
    assert [begin.turn.lane for begin in desk.begun] == ["busy", "other", "idle"]
    for begin in desk.begun:
        assert desk.answer(begin, story)[-1]["type"] == "response.completed"
    assert [begin.turn.lane for begin in desk.begun] == ["busy", "other", "idle", "busy"]
    assert desk.begun[2].generate.deadline_s == 0.005


def test_a_turn_that_cannot_be_built_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    def unbuildable(*args: Any) -> Any:
        raise InvalidField("deadline_ms", "a positive number of milliseconds", 0)

    with monkeypatch.context() as patched:
        patched.setattr(Create, "generate", unbuildable)
        desk.create(stream_id="a")
    for number in range(MAX_IN_FLIGHT - 1):
        desk.create(stream_id=f"lane-{number}")
    assert len(desk.begun) == MAX_IN_FLIGHT


def test_steering_and_warm_up_are_refused_as_specified() -> None:
    desk = Desk()
    (steer,) = desk.receive(type="response.steer", previous_response_id="resp_1", input="more")
    assert (steer["type"], steer["error"]["code"]) == ("response.steer.failed", "steering_not_supported")
    assert (
        steer["steer"] == {"previous_response_id": "resp_1", "input": "more"} and "sequence_number" in steer
    )
    (warm_up,) = desk.create(generate=False, stream_id="a")
    assert (warm_up["type"], warm_up["status"], warm_up["error"]["param"]) == ("error", 400, "generate")
    assert desk.begun == []


def test_models_are_checked() -> None:
    (refused,) = Desk().create(model="gpt-5")
    assert (refused["status"], refused["error"]["code"], refused["error"]["param"]) == (
        404,
        "model_not_found",
        "model",
    )


def test_logprobs_are_in_the_deltas_and_in_the_whole(story: Any) -> None:
    desk, s = Desk(), story()
    desk.create(include=["message.output_text.logprobs"], top_logprobs=2)
    frames = desk.play(desk.begun[0], s.scored("ab"), s.finish(), s.done())
    delta = next(frame for frame in frames if frame["type"] == "response.output_text.delta")
    assert [entry["token"] for entry in delta["logprobs"]] == ["a", "b"]
    assert frames[-1]["response"]["output"][0]["content"][0]["logprobs"] == delta["logprobs"]


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_frames_and_events_keeps_the_promises(story: Any, seed: int) -> None:
    """Every accepted create ends in exactly one terminal or error frame; no lane ever runs two turns."""
    rng, desk = random.Random(seed), Desk()
    running: dict[str, Any] = {}
    creates = seen = 0
    for step in range(400):
        for begin in desk.begun[seen:]:
            assert begin.turn.lane not in {other.turn.lane for other, _ in running.values()}
            running[begin.turn.id] = (begin, story())
        seen = len(desk.begun)
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
            key = rng.choice(list(running))
            begin, s = running.pop(key)
            if rng.random() < 0.2:
                desk.take(desk.session.refused(begin.turn, refusal(QueueFull("full"))))
            else:
                desk.answer(begin, lambda s=s: s)
    ends = [f for f in desk.sent if f["type"].split(".")[-1] in ("completed", "incomplete", "failed")]
    refused = [f for f in desk.sent if f["type"] == "error" and f["error"]["code"] != "response_not_found"]
    assert not running and len(ends) + len(refused) == creates
