"""The card's step without a card: staged changes, run-ahead and results, with the layers in plain torch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest
import torch

pytest.importorskip("triton")

from tiny_models import random_weights, small_llama

from jitney.runtime.batch import RowSampling, Step
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import build_step
from jitney.runtime.cuda.plan import plan_device
from jitney.runtime.messages import Generate, Output
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.steps.cpu import open_cpu_step
from jitney.runtime.worker import StepLoop

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning")
"""Triton's interpreter computes masked lanes with numpy, which speaks of them."""

CONFIG = EngineConfig(
    dtype="float32", num_threads=1, max_rows=6, max_context=512, max_batch_tokens=256, mode="deterministic"
)


def card_step(model: ModelConfig, config: EngineConfig, num_pages: int = 60, *, naive: bool = True) -> Step:
    plan = plan_device(model, config, 8 * 2**30, value_bytes=4)
    plan = msgspec.structs.replace(plan, sizes=msgspec.structs.replace(plan.sizes, num_pages=num_pages))
    weights = random_weights(model)
    return build_step(model, weights, config, plan, torch.float32, torch.device("cpu"), naive=naive)


def requests(count: int, seed: int = 0, most: int = 24) -> list[Generate]:
    rng = random.Random(seed)
    return [
        Generate(
            id=f"r{i}",
            prompt=tuple(rng.randrange(512) for _ in range(rng.choice([1, 3, 17, 64, 65, 150, 200]))),
            sampling=RowSampling(seed=i, temperature=0.0),
            max_tokens=rng.randint(1, most),
            arrival=float(i),
        )
        for i in range(count)
    ]


def run(step: Step, jobs: Sequence[Generate], **options: object) -> tuple[dict[str, list[int]], Scheduler]:
    scheduler = Scheduler(step.capacity, **options)  # type: ignore[arg-type]
    loop = StepLoop(step, scheduler)
    for job in jobs:
        loop.obey(job)
    tokens: dict[str, list[int]] = {job.id: [] for job in jobs}
    ended: dict[str, Output] = {}
    while not loop.is_idle:
        for output in loop.turn(0.0) or ():
            tokens[output.id] += output.tokens
            if output.finish_reason:
                ended[output.id] = output
        scheduler.check()
    assert {output.finish_reason for output in ended.values()} <= {"length", "stop_token"}
    assert len(ended) == len(jobs)
    step.close()
    return tokens, scheduler


@pytest.mark.parametrize("changes", [{}, {"head_dim": 64, "sliding_window": 40, "num_layers": 2}])
def test_tokens_are_those_of_the_cpu_step(changes: dict[str, object]) -> None:
    model = small_llama(**changes)
    weights = random_weights(model)
    jobs = requests(9)
    expected, _ = run(
        open_cpu_step(model, weights, EngineConfig(dtype="float32", num_threads=1, max_context=512)), jobs
    )
    found, _ = run(card_step(model, CONFIG), jobs)
    assert found == expected


def test_a_cramped_pool_preempts_and_changes_nothing() -> None:
    model = small_llama(num_layers=1)
    jobs = [
        Generate(
            id=f"r{i}", prompt=(i + 1,) * 60, sampling=RowSampling(seed=i, temperature=0.0), max_tokens=150
        )
        for i in range(4)
    ]
    roomy, _ = run(card_step(model, CONFIG), jobs)
    cramped, scheduler = run(card_step(model, CONFIG, num_pages=9), jobs)
    assert cramped == roomy
    assert scheduler.stats().preemptions
