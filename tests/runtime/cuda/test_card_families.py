"""Every family through the kernels against transformers: on a card, or in Triton's interpreter.

bfloat16 carries 8 bits, so a hidden state is off by up to 2^-9 of itself at each rounding, and these tiny models round
it some 20 times: log-probabilities of about -5 are then off by some hundredths. The bound below is five times the mean
of what was seen.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from card import CARD, make_step
from families import FAMILIES, PROMPT, family_of
from step_driver import Driver, Row

from jitney.runtime.batch import RowSampling

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning")
SCORED = RowSampling(seed=0, temperature=0.0, prompt_logprobs=5)
COUNT = 64 if CARD.type == "cuda" else 2


SOON = {"qwen3-fast", "qwen2-sliding-deterministic"}
"""What the interpreter, which takes some seconds for each, runs at every change."""
CASES = [
    pytest.param(
        name, mode, id=f"{name}-{mode}",
        marks=() if CARD.type == "cuda" or f"{name}-{mode}" in SOON else pytest.mark.large,
    )
    for name in FAMILIES
    for mode in ("deterministic", "fast")
]  # fmt: skip


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_float32_logits_and_greedy_tokens(name: str, mode: str) -> None:
    reference, model, weights = family_of(name)
    step = make_step(model, weights, dtype=torch.float32, mode=mode, max_rows=2, max_context=256)
    row = Row(PROMPT, SCORED)
    [tokens] = Driver(step).generate([row], COUNT)
    step.close()
    with torch.no_grad():
        logits = reference(torch.tensor([PROMPT + tokens])).logits[0]
    assert tokens == logits.argmax(-1).tolist()[len(PROMPT) - 1 : -1]
    logprobs = logits.log_softmax(-1)
    for position, scores in enumerate(row.outcomes[0].prompt_logprobs[1:], start=1):
        assert scores is not None and scores.token_id == PROMPT[position]
        for token, logprob in scores.top:
            assert abs(logprob - logprobs[position - 1, token].item()) < 1e-4


@pytest.mark.skipif(
    CARD.type != "cuda", reason="the interpreter computes bfloat16 in float32: nothing to measure"
)
@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_logits_are_off_by_its_rounding(name: str) -> None:
    reference, model, weights = family_of(name)
    step = make_step(model, weights, dtype=torch.bfloat16, mode="fast", max_rows=2, max_context=256)
    row = Row(PROMPT, SCORED)
    Driver(step).generate([row], 1)
    step.close()
    with torch.no_grad():
        logprobs = reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    errors = [
        abs(logprob - logprobs[position - 1, token].item())
        for position, scores in enumerate(row.outcomes[0].prompt_logprobs)
        if scores is not None
        for token, logprob in scores.top
    ]
    print(f"{name}: mean {sum(errors) / len(errors):.4f}, largest {max(errors):.4f}")  # noqa: T201
    assert sum(errors) / len(errors) < 0.05
