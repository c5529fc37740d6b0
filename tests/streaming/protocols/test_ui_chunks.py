"""The chunks of an answer, in the order and with the fields that the AI SDK's schema asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jitney.runtime.events import Event, FinishReason, Times, Usage
from jitney.streaming.protocols.reasoning import ReasoningSplitter
from jitney.streaming.protocols.ui_chunks import UIChunks

MARKERS = ("<think>", "</think>")


def delta(seq: int, text: str) -> Event:
    return Event("resp_1", seq, "delta", text=text)


def done(reason: FinishReason, error: str | None = None) -> Event:
    times = Times(queued_s=0.01, first_token_s=0.5, total_s=1.5)
    return Event("resp_1", 9, "done", finish_reason=reason, usage=Usage(7, 11, 3), times=times, error=error)


def told(*events: Event, markers: tuple[str, str] | None = None) -> list[dict[str, Any]]:
    """The chunks; what stands around them is checked."""
    chunks = UIChunks("r", model="m")
    raw = chunks.begin("resp_1", ReasoningSplitter(markers), sent_as="r0", created_at=2.0)
    for event in events:
        raw += chunks.feed(event)
    frames = [json.loads(frame) for frame in raw]
    assert all(frame["requestId"] == "r" for frame in frames)
    if chunks.is_done:
        assert frames.pop() == {"type": "end", "requestId": "r"}
    assert [frame["sequence"] for frame in frames] == list(range(len(frames))), "contiguous from 0"
    return [frame["chunk"] for frame in frames]


def test_a_whole_answer() -> None:
    chunks = told(delta(1, "Hel"), delta(2, "lo"), Event("resp_1", 3, "finish", text="!"), done("stop_token"))
    assert [chunk["type"] for chunk in chunks] == [
        *("start", "start-step", "text-start", "text-delta", "text-delta", "text-delta"),
        *("text-end", "finish-step", "finish"),
    ]
    about = {"responseId": "resp_1", "requestId": "r0", "model": "m", "createdAt": 2000}
    assert chunks[0] == {"type": "start", "messageId": "msg_1", "messageMetadata": about}
    assert "".join(chunk.get("delta", "") for chunk in chunks) == "Hello!"
    assert chunks[-1]["finishReason"] == "stop"
    assert chunks[-1]["messageMetadata"] == {
        "finishReason": "stop_token",
        "usage": {"inputTokens": 7, "outputTokens": 11, "totalTokens": 18, "cachedInputTokens": 3},
        "queuedMs": 10.0,
        "timeToFirstTokenMs": 500.0,
        "totalMs": 1500.0,
        "tokensPerSecond": 10.0,
    }


@pytest.mark.parametrize(
    ("reason", "last"),
    [
        ("length", {"type": "finish", "finishReason": "length"}),
        ("stop_string", {"type": "finish", "finishReason": "stop"}),
        ("deadline", {"type": "finish", "finishReason": "interrupted"}),
        ("cancelled", {"type": "abort", "reason": "the response was cancelled"}),
        ("error", {"type": "error", "errorText": "out of luck"}),
    ],
)
def test_every_way_to_end(reason: FinishReason, last: dict[str, Any]) -> None:
    error = "out of luck" if reason == "error" else None
    chunks = told(delta(1, "x"), done(reason, error))
    assert [chunk["type"] for chunk in chunks][3:6] == ["text-delta", "text-end", "finish-step"]
    assert last.items() <= chunks[-1].items()
    figures = [chunk for chunk in chunks[1:] if "messageMetadata" in chunk]
    assert len(figures) == 1 and figures[0]["messageMetadata"]["usage"]["outputTokens"] == 11


def test_an_answer_without_text_has_no_parts() -> None:
    assert [chunk["type"] for chunk in told(done("stop_token"))] == ["start", "finish"]


def test_news_while_nothing_is_said_is_transient_and_numbered() -> None:
    chunks = UIChunks("r", model="m")
    chunks.begin("resp_1", ReasoningSplitter(None), sent_as="r", created_at=0.0)
    frame = json.loads(chunks.status(state="queued", queuePosition=2))
    assert frame["sequence"] == 1
    data = {"state": "queued", "queuePosition": 2}
    assert frame["chunk"] == {"type": "data-status", "data": data, "transient": True}


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_reasoning_goes_before_the_text_however_it_is_cut(size: int) -> None:
    text = "<think>\nlet me see\n</think>\n\nIt is 4."
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    chunks = told(
        *(delta(i, piece) for i, piece in enumerate(pieces, 1)), done("stop_token"), markers=MARKERS
    )
    kinds = list(dict.fromkeys(chunk["type"] for chunk in chunks))
    assert kinds[1:-1] == [
        *("start-step", "reasoning-start", "reasoning-delta", "reasoning-end"),
        *("text-start", "text-delta", "text-end", "finish-step"),
    ]
    for kind, expected in (("reasoning-delta", "let me see"), ("text-delta", "It is 4.")):
        assert "".join(chunk["delta"] for chunk in chunks if chunk["type"] == kind) == expected
