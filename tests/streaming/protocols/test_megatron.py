"""Megatron's two routes: every field honoured or refused by name, and never an error as a 200."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from jitney.runtime.batch import TokenLogprobs
from jitney.runtime.errors import RequestError
from jitney.runtime.events import Event, Usage
from jitney.runtime.params import SamplingParams
from jitney.runtime.testing import ByteTokenizer
from jitney.streaming.protocols import legacy_completions, megatron
from jitney.streaming.protocols.exchange import Opened
from jitney.streaming.protocols.fields import HONOURED
from jitney.streaming.protocols.legacy_completions import LegacyCompletion
from jitney.streaming.protocols.megatron import MegatronApi

TOKENIZER = ByteTokenizer()


def api(**fields: Any) -> MegatronApi:
    return MegatronApi(msgspec.json.encode({"prompts": ["ab"], **fields}), TOKENIZER)


def params(**fields: Any) -> SamplingParams:
    return api(**fields).generates[0].params


def test_every_field_reaches_the_sampler_or_is_refused() -> None:
    neutral = params()
    changes: dict[str, tuple[Any, dict[str, Any]]] = {
        "tokens_to_generate": (7, {"max_tokens": 7}),
        "logprobs": (True, {"logprobs": 0, "prompt_logprobs": 0}),
        "temperature": (0.5, {"temperature": 0.5}),
        "top_k": (1, {"top_k": 1}),
        "top_p": (0.5, {"top_p": 0.5}),
        "stop_on_double_eol": (True, {"stop": ["\n\n"], "include_stop_str_in_output": True}),
        "stop_on_eol": (True, {"stop": ["\n"], "include_stop_str_in_output": True}),
        "prevent_newline_after_colon": (
            True,
            {"bad_token_sequences": [list(b":\n"), list(b":\n\n")]},
        ),
        "random_seed": (5, {"seed": 5}),
        "stop_token": (
            33,
            {"stop_token_ids": [33], "ignore_eos": True, "include_stop_str_in_output": True},
        ),
    }
    for field, (value, expected) in changes.items():
        changed = msgspec.structs.replace(neutral, **expected)
        assert params(**{field: value}) == changed, field
    decaying = params(top_p=0.9, top_p_decay=0.5, top_p_bound=0.1)
    assert (decaying.top_p, decaying.top_p_decay, decaying.top_p_bound) == (0.9, 0.5, 0.1)
    assert api().generates[0].add_bos is False
    rest = {"prompts", "top_p_decay", "top_p_bound", "add_BOS", "length_penalty"}
    assert {*megatron.FIELDS} == {*changes, *rest, "max_len", "sentences", "beam_width"}


def test_the_defaults_are_megatrons_and_not_the_models() -> None:
    given = params()
    assert (given.temperature, given.top_k, given.top_p, given.min_p) == (1.0, 0, 1.0, 0.0)
    assert (given.max_tokens, given.seed, given.ignore_eos, given.repetition_penalty) == (
        64,
        None,
        False,
        1.0,
    )


def test_the_prompts_of_one_seed_draw_differently() -> None:
    seeds = [g.params.seed for g in api(prompts=["a", "a"], random_seed=2**64 - 1).generates]
    assert seeds == [2**64 - 1, 0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompts": []}, "prompts"),
    ({"prompts": ["x"] * 129}, "prompts"),
    ({"prompts": "x"}, "prompts"),
    ({"prompts": [5]}, "prompts[0]"),
    ({"prompts": [""]}, "prompts"),
    ({"add_BOS": True}, "add_BOS"),
    ({"add_BOS": 1}, "add_BOS"),
    ({"max_len": 5}, "max_len"),
    ({"sentences": ["x"]}, "sentences"),
    ({"beam_width": 2}, "beam_width"),
    ({"length_penalty": 0.5}, "length_penalty"),
    ({"wibble": 1}, "wibble"),
    ({"tokens_to_generate": 0}, "tokens_to_generate"),
    ({"tokens_to_generate": -1}, "tokens_to_generate"),
    ({"tokens_to_generate": 1.5}, "tokens_to_generate"),
    ({"tokens_to_generate": True}, "tokens_to_generate"),
    ({"logprobs": 1}, "logprobs"),
    ({"temperature": 0}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_k": 1001}, "top_k"),
    ({"top_k": 1.0}, "top_k"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": 0.5, "top_k": 5}, "top_p"),
    ({"top_p_decay": 0.5}, "top_p_decay"),
    ({"top_p": 0.5, "top_p_decay": 1.5}, "top_p_decay"),
    ({"top_p_bound": 0.5}, "top_p_bound"),
    ({"top_p": 0.5, "top_p_bound": 0.6}, "top_p_bound"),
    ({"stop_on_eol": "yes"}, "stop_on_eol"),
    ({"stop_on_double_eol": 1}, "stop_on_double_eol"),
    ({"prevent_newline_after_colon": 1}, "prevent_newline_after_colon"),
    ({"random_seed": -1}, "random_seed"),
    ({"random_seed": 2**64}, "random_seed"),
    ({"stop_token": -1}, "stop_token"),
    ({"stop_token": "x"}, "stop_token"),
]


@pytest.mark.parametrize(("fields", "named"), REFUSED, ids=[str(case) for case in REFUSED])
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as refused:
        api(**fields)
    assert refused.value.field == named


def scored(*tokens: int) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(token, -token / 100) for token in tokens)


def answered(exchange: Any, *, prompts: tuple[tuple[int, ...], ...], events: list[Event]) -> Any:
    exchange.begin(Opened("x", 0, "m", TOKENIZER, prompts))
    for event in events:
        assert exchange.feed(0, event) == b""
    return msgspec.json.decode(exchange.result())


EVENTS = [
    Event("r", 1, "prompt", prompt_logprobs=(None, *scored(98))),
    Event("r", 2, "finish", text="cd", token_ids=(99, 100), logprobs=scored(99, 100), finish_reason="length"),
    Event("r", 3, "done", finish_reason="length", usage=Usage(2, 2)),
]


def test_the_answer_is_the_prompt_and_what_follows() -> None:
    answer = answered(api(logprobs=True), prompts=((97, 98),), events=EVENTS)
    assert answer == {
        "text": ["abcd"],
        "segments": [["a", "b", "c", "d"]],
        "tokens": [[97, 98, 99, 100]],
        "logprobs": [[-0.98, -0.99, -1.0]],
    }
    assert "logprobs" not in answered(api(), prompts=((97, 98),), events=EVENTS[1:])


def test_no_tokens_means_scores_alone() -> None:
    exchange = api(tokens_to_generate=0, logprobs=True)
    assert exchange.generates[0].params.max_tokens == 1
    answer = answered(exchange, prompts=((97, 98),), events=EVENTS)
    assert answer["text"] == ["ab"] and answer["tokens"] == [[97, 98]] and answer["logprobs"] == [[-0.98]]


def test_a_failure_is_no_answer() -> None:
    exchange = api()
    exchange.begin(Opened("x", 0, "m", TOKENIZER, ((97,),)))
    exchange.feed(0, Event("r", 1, "done", finish_reason="error", error="it broke"))
    refused = exchange.result()
    assert not isinstance(refused, bytes) and refused.status == 500


def legacy(**fields: Any) -> LegacyCompletion:
    return LegacyCompletion(msgspec.json.encode({"prompt": "ab", "max_tokens": 2, **fields}), "m")


def test_the_legacy_completion_scores_a_prompt_without_an_answer() -> None:
    exchange = legacy(max_tokens=0, echo=True, logprobs=1)
    answer = answered(exchange, prompts=((97, 98),), events=EVENTS)
    choice = answer["choices"][0]
    assert choice["text"] == "ab" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["a", "b"] and choice["logprobs"]["token_logprobs"] == [
        None,
        -0.98,
    ]
    assert answer["usage"]["completion_tokens"] == 0 and answer["usage"]["total_tokens"] == 2


def test_the_legacy_completion_takes_megatrons_defaults() -> None:
    given = legacy(seed=0).generates[0].params
    assert (given.temperature, given.top_k, given.top_p, given.seed) == (1.0, 0, 1.0, None)
    assert legacy(seed=3, temperature=0).generates[0].params.temperature == 0
    assert legacy(prompt=[5, 6]).generates[0].prompt == [5, 6]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "echo"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 11}, "logprobs"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"debug_fname": "/x"}, "debug_fname"),
        ({"stream": True}, "stream"),
        ({"seed": -1}, "seed"),
        ({"model": "other"}, "model"),
    ],
)
def test_the_legacy_completion_refuses_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as refused:
        legacy(**fields)
    assert refused.value.field == named


def test_the_tables_and_the_structs_name_the_same_fields() -> None:
    honoured = {name for name, rule in megatron.FIELDS.items() if rule is HONOURED}
    assert honoured == {*megatron._Request.__struct_fields__}
    assert {*legacy_completions._Request.__struct_fields__} <= {*legacy_completions.FIELDS}
