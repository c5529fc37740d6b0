"""Every family against transformers: tiny random weights, float32, logits within 1e-4, 64 greedy tokens equal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES, PROMPT, family_of
from step_driver import Driver, Row
from tiny_models import TensorWeights

from jitney.runtime.batch import Chunk, RowSampling
from jitney.runtime.config import EngineConfig
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.steps.cpu import open_cpu_step


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[tuple[Any, ModelConfig, TensorWeights]]:
    yield family_of(request.param)


def assert_greedy(reference: Any, tokens: list[int]) -> None:
    """Each token after the prompt is what the reference likes best after those before it."""
    with torch.no_grad():
        best = reference(torch.tensor([PROMPT + tokens])).logits[0].argmax(-1).tolist()
    assert tokens == best[len(PROMPT) - 1 : -1]


def test_logits_and_greedy_tokens(family: tuple[Any, ModelConfig, TensorWeights]) -> None:
    reference, model, weights = family
    with torch.no_grad():
        logprobs = reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    step = open_cpu_step(model, weights, EngineConfig(dtype="float32", max_rows=4, kv_cache_bytes=2**24))
    scored = RowSampling(seed=0, temperature=0.0, prompt_logprobs=160, logprobs=160)
    rows = [Row(PROMPT, scored), Row(PROMPT, cuts=(1, 33, 64, 74))]
    whole, cut = Driver(step).generate(rows, 64)
    assert_greedy(reference, whole)
    assert cut == whole and len(whole) == 64
    for position, scores in enumerate(rows[0].outcomes[0].prompt_logprobs):
        if position:
            assert scores is not None and scores.token_id == PROMPT[position]
            for token, logprob in scores.top:
                assert abs(logprob - logprobs[position - 1, token].item()) < 1e-4
    step.close()


def test_cached_pages_and_recomputed_tokens(family: tuple[Any, ModelConfig, TensorWeights]) -> None:
    reference, model, weights = family
    step = open_cpu_step(model, weights, EngineConfig(dtype="float32", max_rows=4, kv_cache_bytes=2**24))
    driver = Driver(step)
    first = Row(PROMPT)
    [expected] = driver.generate([first], 12)
    assert_greedy(reference, expected)
    cached = tuple(driver.tables[0][:2])  # 64 positions
    row = Row(PROMPT, generated=expected[:5])  # preempted after 5 tokens, then found in the cache
    seat = driver.seat(1, row, 12, start=64, pages=(*cached, *driver.pages_for(32)))
    outcome = driver.run([seat], [Chunk(1, 64, len(PROMPT) + 5 - 64, True)])[1]
    tokens = list(outcome.tokens)
    while len(tokens) < 7:
        tokens += driver.run(decodes=[1])[1].tokens
    assert tokens == expected[5:]
    step.close()
