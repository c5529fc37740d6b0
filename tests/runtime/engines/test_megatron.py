"""Megatron-LM's sampling fields: each honoured, or refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jitney.runtime.checks import from_fields
from jitney.runtime.engines.megatron import MegatronFields
from jitney.runtime.errors import InvalidField
from jitney.runtime.params import SamplingParams

MEGATRONS = {
    "temperature", "top_k", "top_p", "return_log_probs", "skip_prompt_log_probs", "return_segments",
    "num_tokens_to_generate", "num_tokens_total", "termination_id", "return_prompt_top_n_logprobs", "top_n_logprobs",
    "add_BOS", "stop_words", "detokenize_stop_sequence", "return_prompt_tokens", "streaming", "streaming_interval",
    "do_kv_handoff",
}  # fmt: skip


def test_every_field_of_megatrons_is_known() -> None:
    assert set(MegatronFields.__struct_fields__) == MEGATRONS


def test_fields_left_alone_leave_the_models_defaults() -> None:
    assert from_fields(MegatronFields, {}).params(5) == SamplingParams()


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"top_p": 0.0}, {"top_p": 1.0}),
        ({"top_p": 0}, {"top_p": 1.0}),
        ({"return_log_probs": True}, {"logprobs": 0, "prompt_logprobs": 0}),
        ({"return_log_probs": True, "skip_prompt_log_probs": True}, {"logprobs": 0}),
        ({"return_log_probs": True, "top_n_logprobs": 3}, {"logprobs": 3, "prompt_logprobs": 0}),
        (
            {"return_log_probs": True, "top_n_logprobs": 3, "return_prompt_top_n_logprobs": True},
            {"logprobs": 3, "prompt_logprobs": 3},
        ),
        ({"num_tokens_to_generate": 7}, {"max_tokens": 7}),
        ({"num_tokens_total": 12}, {"max_tokens": 7}),
        ({"termination_id": -1}, {"ignore_eos": True}),
        ({"termination_id": 0}, {"ignore_eos": True, "stop_token_ids": [0]}),
        ({"stop_words": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_words": []}, {"stop": []}),
        ({"detokenize_stop_sequence": True}, {"include_stop_str_in_output": True}),
        ({"streaming_interval": 4}, {"stream_interval": 4}),
        ({"streaming": False, "do_kv_handoff": False}, {}),
        ({"return_segments": True, "return_prompt_tokens": True, "add_BOS": True}, {}),
    ],
)
def test_a_field_is_honoured(fields: dict[str, Any], params: dict[str, Any]) -> None:
    assert from_fields(MegatronFields, fields).params(5) == SamplingParams(**params)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": 5}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": False}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": False}, "top_p"),
        ({"return_log_probs": 1}, "return_log_probs"),
        ({"skip_prompt_log_probs": None}, "skip_prompt_log_probs"),
        ({"return_segments": "x"}, "return_segments"),
        ({"return_prompt_tokens": 0}, "return_prompt_tokens"),
        ({"detokenize_stop_sequence": []}, "detokenize_stop_sequence"),
        ({"add_BOS": 1}, "add_BOS"),
        ({"top_n_logprobs": 2}, "top_n_logprobs"),
        ({"return_log_probs": True, "top_n_logprobs": 21}, "top_n_logprobs"),
        ({"return_log_probs": True, "top_n_logprobs": True}, "top_n_logprobs"),
        ({"return_prompt_top_n_logprobs": True}, "return_prompt_top_n_logprobs"),
        (
            {"return_log_probs": True, "skip_prompt_log_probs": True, "return_prompt_top_n_logprobs": True},
            "return_prompt_top_n_logprobs",
        ),
        ({"num_tokens_to_generate": 0}, "num_tokens_to_generate"),
        ({"num_tokens_to_generate": True}, "num_tokens_to_generate"),
        ({"num_tokens_total": 5}, "num_tokens_total"),
        ({"num_tokens_total": 9.0}, "num_tokens_total"),
        ({"num_tokens_total": 9, "num_tokens_to_generate": 4}, "num_tokens_total"),
        ({"termination_id": -2}, "termination_id"),
        ({"termination_id": True}, "termination_id"),
        ({"stop_words": 5}, "stop_words"),
        ({"stop_words": [""]}, "stop_words"),
        ({"streaming_interval": 0}, "streaming_interval"),
        ({"streaming_interval": True}, "streaming_interval"),
        ({"streaming": True}, "streaming"),
        ({"streaming": 1}, "streaming"),
        ({"do_kv_handoff": True}, "do_kv_handoff"),
        ({"beam_width": 4}, "beam_width"),
    ],
)
def test_a_bad_field_is_refused_under_megatrons_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidField) as refused:
        from_fields(MegatronFields, fields).params(5)
    assert refused.value.field == named and str(refused.value).startswith(f"{named}: ")
