"""Continuous batching against plain padded batches on real weights, float32: the same tokens, text and scores."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tiny_checkpoints import FAMILIES, write_checkpoint

from jitney.runtime import EngineConfig, SamplingParams, StaticEngine

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6] * 5, [7], [20, 30, 40], list(range(60))]
CONFIG = EngineConfig(dtype="float32", num_threads=1, max_rows=3, max_batch_tokens=16)
PARAMS = [
    SamplingParams(temperature=0, max_tokens=20, logprobs=2, prompt_logprobs=1),
    SamplingParams(temperature=1.2, seed=3, max_tokens=15, n=2, top_p=0.9),
    SamplingParams(temperature=0.8, seed=4, max_tokens=25, repetition_penalty=1.3, logprobs=0),
    SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, min_tokens=4),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_equals_continuous(family: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory = write_checkpoint(tmp_path / family, family)
    with StaticEngine(directory, CONFIG) as engine:
        paged = engine.generate(PROMPTS, PARAMS)
    with StaticEngine(directory, CONFIG, legacy=True) as engine:
        padded = engine.generate(PROMPTS, PARAMS)
    for one, other in zip(paged, padded, strict=True):
        assert one["error"] is None and other["error"] is None
        for left, right in zip(one["choices"], other["choices"], strict=True):
            assert left["token_ids"] == right["token_ids"] and left["text"] == right["text"]
            assert left["finish_reason"] == right["finish_reason"]
            assert scores(left["logprobs"]) == pytest.approx(scores(right["logprobs"]), abs=1e-4)
        assert scores(one["prompt_logprobs"]) == pytest.approx(scores(other["prompt_logprobs"]), abs=1e-4)


def test_a_row_that_is_done_outlives_its_context_and_harms_nobody(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory = write_checkpoint(tmp_path / "Llama", "Llama")
    prompts, params = [list(range(90)), [7, 8, 9]], SamplingParams(temperature=0, ignore_eos=True)
    with StaticEngine(directory, CONFIG) as engine:
        paged = engine.generate(prompts, params)
    with StaticEngine(directory, CONFIG, legacy=True) as engine:
        padded = engine.generate(prompts, params)
    assert [len(answer["tokens"]) for answer in padded] == [128 - 90, 128 - 3]
    for one, other in zip(paged, padded, strict=True):
        assert (one["tokens"], one["error"]) == (other["tokens"], other["error"])


def scores(entries: list | None) -> list[float]:
    return [entry["logprob"] for entry in entries or () if entry is not None]
