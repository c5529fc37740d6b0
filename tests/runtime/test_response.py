"""Tokens become text and events: stop strings, intervals, choices, ends. Exactly one `done`, always last."""

from __future__ import annotations

import random
from typing import Any

import pytest

from jitney.runtime.batch import RowSampling, TokenLogprobs
from jitney.runtime.events import Event, Usage
from jitney.runtime.messages import Generate, Output
from jitney.runtime.params import SamplingParams
from jitney.runtime.response import Response
from jitney.runtime.testing.byte_tokenizer import END, ByteTokenizer


class Desk:
    """One response, fed by hand."""

    def __init__(self, **fields: Any) -> None:
        self.now = 10.0
        self.cancelled: list[str] = []
        params = SamplingParams(**fields)
        request = Generate(
            id="r", prompt=(1, 2, 3), sampling=RowSampling(seed=0), n=params.n, max_tokens=100, arrival=10.0
        )
        self.response = Response(
            request,
            params,
            ByteTokenizer(),
            lambda: self.now,
            lambda name: not self.cancelled.append(name),
        )

    def say(self, text: str | bytes | tuple[int, ...], index: int = 0, **fields: Any) -> bool:
        tokens = text if isinstance(text, tuple) else tuple(text.encode() if isinstance(text, str) else text)
        return self.response.take(Output("r", index, tokens, **fields), self.now)

    @property
    def events(self) -> list[Event]:
        return self.response.log.read(0)

    def text(self, index: int = 0) -> str:
        return "".join(event.text for event in self.events if event.index == index)

    def ids(self, index: int = 0) -> tuple[int, ...]:
        return tuple(token for event in self.events if event.index == index for token in event.token_ids)

    @property
    def finish(self) -> tuple[Any, Any]:
        (event,) = [event for event in self.events if event.kind == "finish"]
        return event.finish_reason, event.matched


def test_deltas_then_finish_then_done() -> None:
    desk = Desk()
    assert not desk.say("he")
    desk.now = 11.0
    assert not desk.say("y", finish_reason="length")
    assert [event.kind for event in desk.events] == ["delta", "finish", "done"]
    assert [event.seq for event in desk.events] == [1, 2, 3]
    assert desk.text() == "hey" and desk.ids() == tuple(b"hey") and desk.finish == ("length", None)
    done = desk.events[-1]
    assert done.usage == Usage(3, 3, 0) and done.finish_reason == "length" and done.error is None
    assert done.times is not None and (done.times.first_token_s, done.times.total_s) == (0.0, 1.0)
    assert desk.response.done and desk.response.finish_reasons == ["length"]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(
    "pieces", [["abcSTOPx"], list("abcSTOPx"), ["abcST", "OPx"], ["abcS", "TO", "P", "x"]]
)
def test_a_stop_string_in_one_token_or_over_many(pieces: list[str], include: bool) -> None:
    desk = Desk(stop=["STOP"], include_stop_str_in_output=include)
    wants_cancel = [desk.say(piece) for piece in pieces]
    assert wants_cancel.count(True) == 1
    assert desk.text() == ("abcSTOP" if include else "abc")
    assert desk.finish == ("stop_string", "STOP")
    assert desk.ids() == tuple(b"abcSTOP"), "the ids end with the one that completed the stop"
    assert not any("S" in event.text for event in desk.events[:-2])


def test_what_might_become_a_stop_is_held_back_and_shown_when_it_does_not() -> None:
    desk = Desk(stop="STOP")
    desk.say("aST")
    assert desk.text() == "a"
    desk.say("x")
    assert desk.text() == "aSTx"
    desk.say("STO", finish_reason="length")
    assert desk.text() == "aSTxSTO" and desk.finish == ("length", None)


def test_a_stop_that_only_the_end_completes() -> None:
    desk = Desk(stop="a\ufffd")
    desk.say(b"xa\xe2")
    assert desk.text() == "x"
    assert not desk.say((END,), finish_reason="stop_token", matched=END)
    assert desk.finish == ("stop_string", "a\ufffd") and desk.text() == "x"


def test_a_cancel_is_a_cancel_even_if_the_end_completes_a_stop() -> None:
    desk = Desk(stop="\ufffd")
    desk.say(b"x\xe2")
    desk.response.end("cancelled")
    assert desk.finish == ("cancelled", None) and desk.text() == "x"


def test_a_row_that_ended_with_its_stop_needs_no_cancel() -> None:
    desk = Desk(stop="b")
    assert not desk.say("ab", finish_reason="length")
    assert desk.finish == ("stop_string", "b") and desk.text() == "a"


def test_no_stop_string_before_min_tokens() -> None:
    desk = Desk(stop="b", min_tokens=3)
    assert not desk.say("abx")
    assert desk.say("b")
    assert desk.text() == "abx" and desk.finish == ("stop_string", "b")
    desk = Desk(stop="b", min_tokens=3)
    assert desk.say("aab") and desk.text() == "aa"
    desk = Desk(stop=["bcde", "ab"], min_tokens=3)
    assert not any(map(desk.say, "abcd")) and desk.text() == "a", "it may still be one"
    assert desk.say("e") and desk.text() == "a" and desk.finish == ("stop_string", "bcde")


@pytest.mark.parametrize(
    ("params", "token", "text"),
    [
        ({}, END, "ab"),
        ({"include_stop_str_in_output": True}, END, "ab"),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, END, "ab<end>"),
        ({"skip_special_tokens": False}, END, "ab"),
        ({"stop_token_ids": [33]}, 33, "ab"),
        ({"stop_token_ids": [33], "include_stop_str_in_output": True}, 33, "ab!"),
    ],
)
def test_an_end_tokens_text_is_hidden_unless_asked_for(params: dict[str, Any], token: int, text: str) -> None:
    desk = Desk(**params)
    desk.say((97, 98, token), finish_reason="stop_token", matched=token)
    assert desk.text() == text and desk.ids() == (97, 98, token) and desk.finish == ("stop_token", token)


def test_an_unfinished_character_waits_and_shows_at_the_end() -> None:
    desk = Desk()
    desk.say("é".encode()[:1])
    assert desk.text() == "" and desk.ids() == ("é".encode()[0],)
    desk.say("é".encode()[1:])
    assert desk.text() == "é"
    desk.say(b"\xe2\x82", finish_reason="length")
    assert desk.text() == "é\ufffd"


def test_an_interval_gathers_tokens_and_the_finish_brings_the_rest() -> None:
    desk = Desk(stream_interval=3)
    for letter in "abcdefgh":
        desk.say(letter)
    assert [event.text for event in desk.events] == ["abc", "def"]
    desk.say("i", finish_reason="length")
    assert [event.text for event in desk.events[:3]] == ["abc", "def", "ghi"]
    desk = Desk(stream_interval=3)
    desk.say("abcdefg")
    assert [event.text for event in desk.events] == ["abcdefg"]


def test_without_detokenizing_there_are_ids_and_no_text() -> None:
    desk = Desk(detokenize=False)
    desk.say("ab", finish_reason="length")
    assert desk.text() == "" and desk.ids() == (97, 98)


def test_logprobs_go_with_their_tokens_and_stop_with_the_stop() -> None:
    scores = tuple(TokenLogprobs(token, -1.0) for token in b"abcd")
    desk = Desk(logprobs=0, stop="c")
    desk.say("abcd", logprobs=scores)
    told = [entry for event in desk.events for entry in event.logprobs or ()]
    assert told == list(scores[:3])
    desk = Desk()
    desk.say("abcd", logprobs=scores)
    assert desk.events[0].logprobs is None


def test_prompt_logprobs_come_before_the_first_delta() -> None:
    desk = Desk(prompt_logprobs=0)
    desk.say("", prompt_logprobs=(None, TokenLogprobs(2, -1.0)))
    desk.say("a", prompt_logprobs=(TokenLogprobs(3, -1.0),))
    assert [event.kind for event in desk.events] == ["prompt", "prompt", "delta"]


def test_choices_end_one_by_one_with_one_done() -> None:
    desk = Desk(n=3)
    desk.say("a", 0, cached_tokens=2)
    desk.say("b", 1, finish_reason="length", cached_tokens=3)
    assert desk.say("c", 2) is False and not desk.response.done
    desk.say("", 2, finish_reason="error", error="sick")
    desk.say("z", 0, finish_reason="stop_token", matched=None)
    kinds = [(event.kind, event.index) for event in desk.events]
    assert kinds == [("delta", 0), ("finish", 1), ("delta", 2), ("finish", 2), ("finish", 0), ("done", 0)]
    done = desk.events[-1]
    assert (done.finish_reason, done.error) == ("stop_token", "sick")
    assert done.usage == Usage(3, 4, 2), "the prompt was looked up for choice 0"


def test_one_choices_stop_asks_for_that_row_alone() -> None:
    desk = Desk(n=2, stop="x")
    assert desk.say("ax", 0) and not desk.say("ab", 1)
    assert not desk.response.done


def test_what_comes_after_the_end_is_counted_and_changes_nothing() -> None:
    desk = Desk(n=2, stop="x")
    desk.say("x", 0)
    assert not desk.say("more", 0) and desk.response.log.num_discarded == 1
    desk.response.end("cancelled")
    before = desk.events
    assert not desk.say("more", 1, finish_reason="length")
    desk.response.end("error", "late")
    assert desk.events == before and desk.response.log.num_discarded == 2


@pytest.mark.parametrize("reason", ["cancelled", "deadline", "error"])
def test_ending_closes_every_open_choice_once(reason: Any) -> None:
    desk = Desk(n=3)
    desk.say("a", 1, finish_reason="length")
    desk.response.end(reason, "why" if reason == "error" else None)
    desk.response.end("cancelled")
    finishes = {event.index: event.finish_reason for event in desk.events if event.kind == "finish"}
    assert finishes == {0: reason, 1: "length", 2: reason}
    assert [event.kind for event in desk.events].count("done") == 1
    assert desk.events[-1].error == ("why" if reason == "error" else None)
    assert desk.events[-1].times is not None and desk.events[-1].times.first_token_s == 0.0


def test_ending_before_anything_came() -> None:
    desk = Desk(stop="x")
    desk.response.end("deadline")
    assert [event.kind for event in desk.events] == ["finish", "done"] and desk.text() == ""
    times = desk.events[-1].times
    assert times is not None and times.queued_s is None and times.first_token_s is None


def test_times_are_seconds_since_the_arrival() -> None:
    desk = Desk()
    desk.now = 11.0
    desk.response.dispatched()
    desk.now = 13.0
    desk.say("a")
    desk.now = 15.0
    desk.say("b", finish_reason="length")
    times = desk.events[-1].times
    assert times is not None and (times.queued_s, times.first_token_s, times.total_s) == (1.0, 3.0, 5.0)


def test_the_handle_cancels_by_its_id() -> None:
    desk = Desk()
    assert desk.response.cancel() and desk.cancelled == ["r"]


def test_nothing_but_the_log_is_kept_after_the_end() -> None:
    desk = Desk(n=2, stop=["x" * 200] * 4)
    assert all(choice._stops is None for choice in desk.response.choices), (
        "a waiting request costs its prompt only"
    )
    desk.say("ab")
    desk.response.end("cancelled")
    assert all(c._stops is None and c._detokenizer is None for c in desk.response.choices)
    assert desk.response.num_bytes > desk.response.log.num_bytes


def played(seed: int, output: str) -> Desk:
    rng = random.Random(seed)
    desk = Desk(n=2, output=output, logprobs=0)
    for index in [rng.randrange(2) for _ in range(30)]:
        desk.say(rng.choice(["a", "bc", "é"])[:1], index, logprobs=(TokenLogprobs(1, -1.0),))
    desk.say("y", 1, finish_reason="length", logprobs=(TokenLogprobs(1, -1.0),))
    desk.say("z", 0, finish_reason="length", logprobs=(TokenLogprobs(1, -1.0),))
    return desk


async def read(response: Response, after: int = 0) -> list[Event]:
    return [event async for event in response.events(after)]


@pytest.mark.parametrize("seed", range(5))
async def test_cumulative_events_hold_all_so_far_from_wherever_one_reads(seed: int) -> None:
    desk = played(seed, "cumulative")
    whole = {index: (desk.text(index), desk.ids(index)) for index in (0, 1)}
    for after in range(desk.response.log.last_seq):
        for event in await read(desk.response, after):
            if event.kind == "done":
                continue
            covered = [
                e for e in desk.events if e.index == event.index and e.seq <= event.seq and e.kind != "done"
            ]
            assert event.text == "".join(e.text for e in covered)
            assert event.token_ids == tuple(t for e in covered for t in e.token_ids)
            assert event.logprobs is not None and len(event.logprobs) >= len(covered)
            if event.kind == "finish":
                assert (event.text, event.token_ids) == whole[event.index]


@pytest.mark.parametrize("seed", range(5))
async def test_final_output_has_the_finishes_whole_and_no_deltas(seed: int) -> None:
    desk = played(seed, "final")
    for after in (0, 3, 10):
        events = await read(desk.response, after)
        assert [event.kind for event in events] == ["finish", "finish", "done"]
        for event in events[:2]:
            assert (event.text, event.token_ids) == (desk.text(event.index), desk.ids(event.index))


async def test_a_place_before_the_first_is_the_first() -> None:
    desk = Desk(output="cumulative")
    desk.say("ab")
    desk.say("c", finish_reason="length")
    for after in (0, -1):
        assert [event.text async for event in desk.response.events(after)][-2:] == ["abc", ""]
