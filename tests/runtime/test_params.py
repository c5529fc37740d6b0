"""Sampling parameters at the edge: every field, every bad kind of value, every good edge."""

from __future__ import annotations

import math
from collections import OrderedDict, UserDict
from typing import Any

import pytest

from jitney.runtime.errors import InvalidField
from jitney.runtime.params import SamplingParams

HUGE = 10**400
NUMBERS = (
    "temperature",
    "top_p",
    "top_p_decay",
    "top_p_bound",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
INTEGERS = (
    "top_k",
    "seed",
    "max_tokens",
    "min_tokens",
    "n",
    "logprobs",
    "prompt_logprobs",
    "stream_interval",
)
FLAGS = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "detokenize",
)
IDS = ("allowed_token_ids", "bad_token_ids", "stop_token_ids", "logprob_token_ids")
WORDS = ("bad_words", "stop")
NOT_NULL = (
    "top_p_decay",
    "top_p_bound",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "n",
    "stream_interval",
    "output",
    *FLAGS,
)

BAD: list[tuple[str, Any]] = [
    *(
        (field, value)
        for field in NUMBERS
        for value in (math.nan, math.inf, -math.inf, True, "1", [], {}, b"1", 1j, HUGE, -HUGE)
    ),
    *(
        (field, value)
        for field in INTEGERS
        for value in (math.nan, math.inf, True, False, "1", 1.0, [], {}, HUGE, -HUGE, -2)
    ),
    *((field, value) for field in FLAGS for value in (0, 1, "true", [], math.nan)),
    *((field, None) for field in NOT_NULL),
    *(
        (field, value)
        for field in IDS
        for value in (5, "5", {5}, {5: 5}, [-1], [True], [1.0], ["1"], [None], [1] * 1025, b"12", iter([1]))
    ),
    *(
        (field, value)
        for field in WORDS
        for value in (5, {"a"}, {"a": 1}, [5], [None], [""], ["x" * 257], ["\ud800"], b"a", True)
    ),
    ("bad_words", "a string is no list"),
    ("bad_words", ["a"] * 1025),
    ("stop", "\ud800"),
    ("stop", ""),
    ("stop", "x" * 257),
    ("stop", ["a"] * 17),
    ("temperature", -0.001),
    ("temperature", 2.001),
    ("top_p", 0.0),
    ("top_p", 1.001),
    ("top_p_decay", 0.0),
    ("top_p_decay", 1.001),
    ("top_p_bound", -0.001),
    ("top_p_bound", 1.001),
    *(("bad_token_sequences", value) for value in (5, [5], [[]], [[-1]], [[True]], [["a"]], [[1]] * 1025)),
    ("min_p", -0.001),
    ("min_p", 1.001),
    ("top_k", 2**31),
    ("presence_penalty", 2.001),
    ("presence_penalty", -2.001),
    ("frequency_penalty", 2.001),
    ("frequency_penalty", -2.001),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 10.001),
    ("seed", -1),
    ("seed", 2**64),
    ("max_tokens", 0),
    ("max_tokens", 2**31),
    ("min_tokens", -1),
    ("n", 0),
    ("n", 9),
    ("logprobs", -1),
    ("logprobs", 21),
    ("prompt_logprobs", -1),
    ("prompt_logprobs", 21),
    ("stream_interval", 0),
    ("logit_bias", [(1, 2.0)]),
    ("logit_bias", {"1": 1.0}),
    ("logit_bias", {True: 1.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1.0: 1.0}),
    ("logit_bias", UserDict({1: 1.0})),
    ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    ("allowed_token_ids", []),
    ("output", "all"),
    ("output", 5),
    ("output", []),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidField) as refused:
        SamplingParams(**{field: value})
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: expected ")


@pytest.mark.parametrize("field", NUMBERS + INTEGERS)
def test_a_number_too_long_to_print_is_refused_by_name(field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        SamplingParams(**{field: 10**5000})
    assert refused.value.field == field


@pytest.mark.parametrize("bias", [math.nan, math.inf, 101, -101, True, "1", None, HUGE])
def test_a_bad_bias_is_refused_with_its_token(bias: Any) -> None:
    with pytest.raises(InvalidField) as refused:
        SamplingParams(logit_bias={1: 1.0, 7: bias})
    assert refused.value.field == "logit_bias[7]"


GOOD: list[tuple[str, Any]] = [
    *(("temperature", value) for value in (0, 0.0, 2, 1.5)),
    *(("top_p", value) for value in (1, 1.0, 1e-9)),
    *((field, value) for field in ("min_p", "top_p_bound") for value in (0, 1, 0.5)),
    *(("top_p_decay", value) for value in (1, 1e-9)),
    *(("bad_token_sequences", value) for value in ([], [[1], [1, 2]], ((3, 4),))),
    *(("top_k", value) for value in (-1, 0, 1, 2**31 - 1)),
    *((field, value) for field in ("presence_penalty", "frequency_penalty") for value in (-2, 2.0, 0)),
    *(("repetition_penalty", value) for value in (0.01, 10, 1.0)),
    *(("seed", value) for value in (0, 2**64 - 1)),
    *(("max_tokens", value) for value in (1, 2**31 - 1)),
    *(("min_tokens", value) for value in (0, 2**31 - 1)),
    *(("n", value) for value in (1, 8)),
    *((field, value) for field in ("logprobs", "prompt_logprobs") for value in (0, 20)),
    *(("stream_interval", value) for value in (1, 2**31 - 1)),
    *((field, value) for field in FLAGS for value in (True, False)),
    *((field, [0, 2**40]) for field in IDS if field != "logprob_token_ids"),
    *((field, (1, 2)) for field in ("bad_token_ids", "stop_token_ids")),
    *(("stop", value) for value in ("x" * 256, ["a"] * 16, [], ("a", "b"), "\0", "é")),
    *(("bad_words", value) for value in ([], ["a"] * 1024, ("a",))),
    *(("logit_bias", value) for value in ({}, {0: -100, 5: 100}, OrderedDict({1: 0.5}))),
    *(("output", value) for value in ("delta", "cumulative", "final")),
    *((field, None) for field in SamplingParams.__struct_fields__ if field not in NOT_NULL),
]


@pytest.mark.parametrize(("field", "value"), GOOD)
def test_a_good_value_is_taken(field: str, value: Any) -> None:
    assert getattr(SamplingParams(**{field: value}), field) == value


def test_every_field_has_bad_and_good_values() -> None:
    fields = set(SamplingParams.__struct_fields__)
    assert {field for field, _ in BAD} == {field for field, _ in GOOD} == fields


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stop": "a", "detokenize": False}, "stop"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ],
)
def test_values_that_do_not_go_together_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidField) as refused:
        SamplingParams(**fields)
    assert refused.value.field == named


def test_values_that_do_go_together_are_taken() -> None:
    SamplingParams(logprobs=0, logprob_token_ids=[5])
    SamplingParams(min_tokens=4, max_tokens=4)
    SamplingParams(stop=[], detokenize=False)


def test_stops_come_as_a_tuple_in_either_form() -> None:
    assert SamplingParams().stops == ()
    assert SamplingParams(stop="ab").stops == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)  # type: ignore[call-arg]
