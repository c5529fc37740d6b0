"""Law 6 through the scheduler and the real step: a request's tokens are those of a run alone, whatever ran beside it,
however its prompt was cut, with or without cached prefixes, and after being preempted."""

from __future__ import annotations

import random
from collections import defaultdict

import msgspec
import pytest
from processors import needs_int8
from tiny_models import random_weights, small_llama

from jitney.runtime.batch import RowSampling, TokenLogprobs
from jitney.runtime.config import EngineConfig
from jitney.runtime.messages import Generate
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.steps.cpu import open_cpu_step
from jitney.runtime.worker import StepLoop

TINY = small_llama()
CONTEXT = 192
Answers = dict[tuple[str, int], tuple[list[int], list[TokenLogprobs]]]


def random_requests(count: int) -> list[Generate]:
    rng = random.Random(5)
    requests = []
    for index in range(count):
        family = random.Random(rng.randrange(3))
        shared = [family.randrange(TINY.vocab_size) for _ in range(rng.choice([0, 40, 70]))]
        prompt = shared + [rng.randrange(TINY.vocab_size) for _ in range(rng.randint(1, 60))]
        sampling = RowSampling(
            seed=rng.getrandbits(64),
            temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 20]),
            min_p=rng.choice([0.0, 0.02]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            presence_penalty=rng.choice([0.0, 0.5]),
            logprobs=3,
        )
        requests.append(
            Generate(
                id=f"r{index}",
                prompt=tuple(prompt),
                sampling=sampling,
                n=rng.choice([1, 1, 1, 2]),
                max_tokens=rng.randint(1, 24),
                arrival=float(index),
            )
        )
    return requests


def run(steps: StepLoop, requests: list[Generate], rng: random.Random | None = None) -> Answers:
    """All requests through one loop; with `rng` they arrive a few at a time between turns."""
    answers: Answers = defaultdict(lambda: ([], []))
    waiting = list(requests)
    while waiting or not steps.is_idle:
        for _ in range(len(waiting) if rng is None else rng.randrange(4)):
            if waiting:
                steps.obey(waiting.pop(0))
        for output in steps.turn(0.0) or ():
            assert output.error is None
            tokens, logprobs = answers[output.id, output.choice]
            tokens += output.tokens
            logprobs += output.logprobs
    return dict(answers)


@pytest.mark.parametrize(
    ("num_requests", "num_mixes"),
    [(40, 5), pytest.param(100, 20, marks=[pytest.mark.large, pytest.mark.timeout(600)])],
)
@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [("float32", None), ("bfloat16", None), pytest.param("bfloat16", "int8", marks=needs_int8)],
    ids=["fp32", "bf16", "int8"],
)
def test_tokens_do_not_depend_on_the_batch(
    dtype: str, quantize: str | None, num_requests: int, num_mixes: int
) -> None:
    requests = random_requests(num_requests)
    page_bytes = (
        2 * TINY.num_layers * TINY.num_kv_heads * TINY.head_dim * 32 * (4 if dtype == "float32" else 2)
    )
    config = EngineConfig(
        dtype=dtype,  # type: ignore[arg-type]  # one of the literals
        quantize=quantize,  # type: ignore[arg-type]
        max_rows=8,
        max_context=CONTEXT,
        num_threads=1,
        kv_cache_bytes=9 * page_bytes,
    )
    step = open_cpu_step(TINY, random_weights(TINY), config)
    try:
        alone: Answers = {}
        for request in requests:
            scheduler = Scheduler(step.capacity, max_batch_tokens=512, prefix_cache=False)
            alone |= run(StepLoop(step, scheduler), [request])
        hits = preemptions = 0
        for seed in range(num_mixes):
            rng = random.Random(seed)
            mixed = [
                msgspec.structs.replace(r, arrival=rng.random()) for r in rng.sample(requests, len(requests))
            ]
            scheduler = Scheduler(
                step.capacity,
                max_batch_tokens=rng.choice([8, 32, 100, 512]),
                prefix_cache=seed % 2 == 0,
                secret=b"test",
            )
            answers = run(StepLoop(step, scheduler), mixed, rng)
            stats = scheduler.stats()
            hits, preemptions = hits + stats.prefix_hits, preemptions + stats.preemptions
            assert {key: tokens for key, (tokens, _) in answers.items()} == {
                k: t for k, (t, _) in alone.items()
            }
            for key, (_, logprobs) in answers.items():
                assert_close(logprobs, alone[key][1])
        assert hits > 0 and preemptions > 0, "the mixes were too easy"
    finally:
        step.close()


def assert_close(found: list[TokenLogprobs], expected: list[TokenLogprobs]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert abs(one.logprob - other.logprob) < 1e-4
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
