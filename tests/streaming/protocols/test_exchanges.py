"""Chat and completions: events in, the exact bytes' meaning out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from jitney.runtime.testing import ByteTokenizer
from jitney.streaming.protocols.chat import ChatCompletion
from jitney.streaming.protocols.completions import Completion
from jitney.streaming.protocols.errors import Refusal
from jitney.streaming.protocols.exchange import Exchange, Opened

USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
}
HEAD = {"id": "x-1", "created": 7, "model": "m"}


def chat(**fields: Any) -> ChatCompletion:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return ChatCompletion(msgspec.json.encode(body), "m")


def completion(**fields: Any) -> Completion:
    return Completion(msgspec.json.encode({"prompt": "hi", **fields}), "m")


def run(exchange: Exchange, *stories: list[Any]) -> bytes:
    prompts = tuple(tuple(str(asked.prompt).encode()) for asked in exchange.generates)
    out = exchange.begin(Opened("x-1", 7, "m", ByteTokenizer(), prompts))
    for which, events in enumerate(stories):
        for event in events:
            out += exchange.feed(which, event)
    return out


def result(exchange: Exchange) -> Any:
    answer = exchange.result()
    assert isinstance(answer, bytes)
    return msgspec.json.decode(answer)


def test_chat_stream(story: Any, frames: Any) -> None:
    s = story()
    exchange = chat(stream=True, stream_options={"include_usage": True})
    out = run(exchange, [s.delta("He"), s.delta(""), s.delta("llo"), s.finish("length", "!"), s.done()])

    def chunk(delta: Any, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**HEAD, "object": "chat.completion.chunk", "choices": [choice], "usage": None}

    assert frames(out + exchange.end()) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "He"}),
        chunk({"content": "llo"}),
        chunk({"content": "!"}),
        chunk({}, "length"),
        {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE},
        b"[DONE]",
    ]


def test_chat_plain_with_two_choices(story: Any) -> None:
    s = story()
    exchange = chat(n=2)
    events = [
        s.delta("a"),
        s.delta("b", 1),
        s.finish("stop_string", "c"),
        s.finish("length", "d", 1),
        s.done(),
    ]
    assert run(exchange, events) == b""
    answer = result(exchange)
    assert answer["object"] == "chat.completion" and answer["usage"] == USAGE
    assert [(c["message"]["content"], c["finish_reason"]) for c in answer["choices"]] == [
        ("ac", "stop"),
        ("bd", "length"),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(story: Any, frames: Any, stream: bool) -> None:
    s = story()
    exchange = chat(logprobs=True, top_logprobs=2, stream=stream)
    out = run(exchange, [s.scored("é"), s.finish(), s.done()])
    listed = frames(out)[1]["choices"][0] if stream else result(exchange)["choices"][0]
    first = listed["logprobs"]["content"][0]
    assert first["token"] == "\ufffd" and first["bytes"] == [0xC3] and first["logprob"] == -0.5
    assert [entry["logprob"] for entry in first["top_logprobs"]] == [-0.5, -9999.0]
    assert len(listed["logprobs"]["content"]) == 2


FAULTS = [("error", "boom", 500, "server_error"), ("deadline", None, 504, "deadline_exceeded")]
FAULTS += [("cancelled", None, 499, "cancelled")]


@pytest.mark.parametrize(("reason", "error", "status", "code"), FAULTS)
def test_a_fault_never_looks_like_an_end(
    story: Any, frames: Any, reason: Any, error: Any, status: int, code: str
) -> None:
    for exchange in (chat(stream=True), chat(), completion(stream=True), completion()):
        s = story()
        out = run(exchange, [s.delta("half"), s.finish(reason), s.done(reason, error)])
        refusal = exchange.result()
        assert isinstance(refusal, Refusal) and (refusal.status, refusal.code) == (status, code)
        assert error is None or refusal.message == error
        if exchange.is_stream:
            last = frames(out + exchange.end())
            assert last[-1] == {"error": refusal.error()}
            assert not any(c["finish_reason"] for frame in last[:-1] for c in frame["choices"])


def test_a_fault_of_one_choice_shows_though_another_ends_well(story: Any) -> None:
    s = story()
    exchange = chat(n=2)
    run(exchange, [s.finish("error", "", 0), s.finish("stop_token", "fine", 1), s.done("stop_token")])
    assert isinstance(exchange.result(), Refusal)


def test_completions_number_choices_over_prompts(story: Any, frames: Any) -> None:
    one, two = story(), story()
    exchange = completion(prompt=["a", [98, 99]], n=2, stream=True, echo=True)
    out = run(
        exchange,
        [one.delta("x"), one.finish(), one.finish(index=1), one.done()],
        [two.delta("y", 1), two.finish("length", "z", 1), two.finish(), two.done()],
    )
    choices = [c for frame in frames(out) for c in frame["choices"]]
    texts = ["".join(c["text"] for c in choices if c["index"] == index) for index in range(4)]
    assert texts == ["ax", "a", "bc", "bcyz"]
    assert frames(exchange.end()) == [b"[DONE]"]


@pytest.mark.parametrize("stream", [False, True])
def test_completions_echo_scores_the_prompt(story: Any, frames: Any, stream: bool) -> None:
    s = story()
    exchange = completion(prompt="hey", echo=True, logprobs=1, stream=stream)
    assert exchange.generates[0].params.prompt_logprobs == 1
    out = run(exchange, [s.prompt("hey"), s.scored("ab"), s.finish(), s.done()])
    tables = [c["logprobs"] for frame in frames(out) for c in frame["choices"] if c["logprobs"]]
    if not stream:
        choice = result(exchange)["choices"][0]
        assert choice["text"] == "heyab"
        tables = [choice["logprobs"]]
    merged = {key: [value for table in tables for value in table[key]] for key in tables[0]}
    assert merged["tokens"] == ["h", "e", "y", "a", "b"]
    assert merged["token_logprobs"] == [None, -1.0, -1.0, -0.5, -0.5]
    assert merged["text_offset"] == [0, 1, 2, 3, 4]
    assert merged["top_logprobs"][1] == {"e": -1.0} and merged["top_logprobs"][0] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_the_echo_of_a_prompt_prefilled_in_chunks_is_one(
    story: Any, frames: Any, stream: bool, n: int
) -> None:
    s = story()
    exchange = completion(prompt="hello", echo=True, logprobs=1, stream=stream, n=n)
    prompt = [s.prompt("he"), s.prompt("hell", start=2), s.prompt("hello", start=4)]
    assert run(exchange, prompt) == b""
    ends = [event for i in range(n) for event in (s.scored("ab", i), s.finish(index=i))]
    out = b"".join(exchange.feed(0, event) for event in (*ends, s.done()))
    choices = (
        [c for frame in frames(out) for c in frame["choices"]] if stream else result(exchange)["choices"]
    )
    for index in range(n):
        mine = [c for c in choices if c["index"] == index]
        assert [c["text"] for c in mine] == (["hello", "ab", ""] if stream else ["helloab"])
        tables = [c["logprobs"] for c in mine if c["logprobs"]]
        merged = {key: [value for table in tables for value in table[key]] for key in tables[0]}
        assert merged["tokens"] == [*"helloab"]
        assert merged["token_logprobs"] == [None, *[-1.0] * 4, -0.5, -0.5]
        assert merged["text_offset"] == [*range(7)]


def test_a_fault_amid_the_prompt_echoes_nothing(story: Any, frames: Any) -> None:
    s = story()
    exchange = completion(prompt="hello", echo=True, logprobs=1, stream=True)
    out = run(exchange, [s.prompt("he"), s.finish("deadline"), s.done("deadline")])
    (error,) = frames(out + exchange.end())
    assert error["error"]["code"] == "deadline_exceeded"


def test_usage_adds_up_over_prompts(story: Any) -> None:
    exchange = completion(prompt=["a", "b"])
    for_each = [[s.finish(), s.done()] for s in (story(), story())]
    run(exchange, *for_each)
    assert result(exchange)["usage"]["total_tokens"] == 16


def test_completions_default_to_sixteen_tokens() -> None:
    assert completion().generates[0].params.max_tokens == 16
    assert chat().generates[0].params.max_tokens is None
