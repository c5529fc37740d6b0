"""The events of one response: their order, their numbers whatever comes merged or cut off, and every way to end."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from jitney.runtime.testing import ByteTokenizer
from jitney.streaming.protocols.reasoning import ReasoningSplitter
from jitney.streaming.protocols.responses import TERMINAL_ONLY, Facts, ResponseEvents

THINK = ("<think>", "</think>")

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


def play(
    *batches: Any, after: int = -1, stream_id: str | None = None, thinks: bool = False, **facts: Any
) -> list[Any]:
    """The frames of a whole response whose log came in these batches; a single event is a batch too."""
    said = Facts(model="m", created_at=7.0, **facts)
    events = ResponseEvents("resp_1", said, ByteTokenizer(), stream_id=stream_id, after=after)
    frames = events.begin(ReasoningSplitter(THINK if thinks else None))
    for batch in batches:
        frames += events.feed(batch if isinstance(batch, list) else [batch])
    assert events.is_done
    return [msgspec.json.decode(frame) for frame in frames]


def numbers(frames: list[Any]) -> list[int]:
    return [frame["sequence_number"] for frame in frames]


def test_the_events_of_a_text_answer(story: Any) -> None:
    s = story()
    frames = play(
        s.delta("He"),
        s.delta("llo"),
        s.finish("stop_token", "!"),
        s.done(),
        stream_id="a",
        metadata={"k": "v"},
        temperature=0.0,
    )
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
    s = story()
    deltas = [s.delta("half")] if has_text else []
    frames = play(*deltas, s.finish(reason), s.done(reason, error))
    response = frames[-1]["response"]
    assert (frames[-1]["type"], response["status"]) == (kind, status)
    assert (response["incomplete_details"] or {"reason": None})["reason"] == detail
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == ("half" if has_text else "")
    assert (response["error"] or {}).get("message") == error
    assert "stream_id" not in frames[-1]


def test_an_item_left_open_by_the_engine_is_closed(story: Any) -> None:
    s = story()
    frames = play(s.delta("half"), s.done("error", "boom"))
    assert [frame["type"] for frame in frames[-2:]] == ["response.output_item.done", "response.failed"]
    assert numbers(frames) == sorted(set(numbers(frames)))


def test_a_warm_up_completes_without_output(story: Any) -> None:
    s = story()
    frames = play(s.finish("length"), s.done("length"), is_warm_up=True)
    assert [frame["type"] for frame in frames[2:]] == ["response.completed"]
    assert frames[-1]["response"]["output"] == [] and frames[-1]["response"]["usage"]["input_tokens"] == 5


def test_logprobs_are_in_the_deltas_and_in_the_whole(story: Any) -> None:
    s = story()
    frames = play(s.scored("ab"), s.finish(), s.done())
    delta = next(frame for frame in frames if frame["type"] == "response.output_text.delta")
    assert [entry["token"] for entry in delta["logprobs"]] == ["a", "b"]
    assert frames[-1]["response"]["output"][0]["content"][0]["logprobs"] == delta["logprobs"]


def test_reasoning_is_an_item_of_its_own_before_the_message(story: Any) -> None:
    s = story()
    frames = play(
        s.delta("<thi"),
        s.delta("nk>Hm"),
        s.delta("m.</think>\n\nYe"),
        s.finish("stop_token", "s."),
        s.done(),
        thinks=True,
    )
    kinds = [frame["type"].removeprefix("response.") for frame in frames]
    closing = ["content_part.done", "output_item.done"]
    assert kinds == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", *closing),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", *closing),
        "completed",
    ]
    assert numbers(frames) == sorted(set(numbers(frames)))
    reasoning, message = frames[-1]["response"]["output"]
    assert (reasoning["type"], reasoning["summary"], reasoning["status"]) == ("reasoning", [], "completed")
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert message["content"][0]["text"] == "Yes." and message["id"] == "msg_1"
    assert {frame["output_index"] for frame in frames if frame.get("item_id") == "msg_1"} == {1}
    assert reasoning_tokens(frames) == len("<think>Hmm.</think>\n\n")
    s = story()
    merged = play(s.delta("<think>Hmm.</think>\n\nYes."), s.finish(), s.done(), thinks=True)
    assert reasoning_tokens(merged) == reasoning_tokens(frames)


def reasoning_tokens(frames: Any) -> int:
    count: int = frames[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"]
    return count


def test_an_answer_cut_off_in_its_reasoning_has_no_message(story: Any) -> None:
    s = story()
    frames = play(s.delta("<think>Hm </th"), s.finish("length"), s.done("length"), thinks=True)
    (reasoning,) = frames[-1]["response"]["output"]
    assert reasoning["status"] == "incomplete" and reasoning["content"][0]["text"] == "Hm </th"


TEXTS = [
    "",
    "Yes.",
    "<think>Hm, hm.</think>Yes, well.",
    "<think>only thoughts",
    "  <think>\n\n</think>\n\nNo.",
    "<thin air",
]


def written(rng: random.Random, story: Any, text: str) -> list[Any]:
    """A log of this text, cut at random."""
    s, log = story(), []
    while text:
        cut = rng.randrange(1, 5)
        log.append(s.delta(text[:cut]))
        text = text[cut:]
    return [*log, s.finish("stop_token"), s.done()]


def batches(rng: random.Random, log: list[Any]) -> list[Any]:
    cuts = sorted(rng.sample(range(1, len(log)), rng.randrange(len(log))))
    return [log[a:b] for a, b in zip([0, *cuts], [*cuts, len(log)], strict=True)]


def joined(frames: list[Any]) -> tuple[str, str]:
    """The deltas of reasoning and of text."""
    said = {"response.reasoning_text.delta": "", "response.output_text.delta": ""}
    for frame in frames:
        if frame["type"] in said:
            said[frame["type"]] += frame["delta"]
    reasoning, text = said.values()
    return reasoning, text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", range(20))
def test_a_reader_may_come_back_at_any_number(story: Any, text: str, seed: int) -> None:
    """Cut after any frame and resumed with other merges: nothing is missing, nothing doubled, the rest is the same."""
    rng = random.Random(seed)
    log = written(rng, story, text)
    straight = play(*log, thinks=True)
    assert numbers(straight) == sorted(set(numbers(straight)))
    kinds = {frame["sequence_number"]: frame["type"] for frame in straight}
    merged = play(*batches(rng, log), thinks=True)
    for cut in range(len(merged)):
        seen = merged[:cut]
        after = seen[-1]["sequence_number"] if seen else -1
        rest = play(*batches(rng, log), thinks=True, after=after)
        assert joined(seen + rest) == joined(straight)
        assert numbers(seen + rest) == sorted(set(numbers(seen + rest)))
        assert all(kinds[frame["sequence_number"]] == frame["type"] for frame in seen + rest)
        assert rest[-1]["response"]["output"] == straight[-1]["response"]["output"]
    assert numbers(play(*log, thinks=True, after=TERMINAL_ONLY)) == [straight[-1]["sequence_number"]]


def test_a_merged_delta_is_bounded(story: Any) -> None:
    s = story()
    log = [s.delta("x" * 10_000) for _ in range(10)]
    frames = play([*log, s.finish(), s.done()])
    sizes = [len(frame["delta"]) for frame in frames if "delta" in frame]
    assert sizes == [30_000] * 3 + [10_000] and frames[-1]["response"]["jitney"]["merged_deltas"] == 6
