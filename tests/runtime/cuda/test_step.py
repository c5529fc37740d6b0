"""The card's step without a card: staged changes, run-ahead and results, with the layers in plain torch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest
import torch
from books import check_books

pytest.importorskip("triton")

from card import interpreted
from spelled import spelled
from tiny_models import random_weights, small_llama

from jitney.runtime.batch import RowSampling, Step, TokenLogprobs
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import build_step
from jitney.runtime.cuda.plan import plan_device
from jitney.runtime.messages import Generate, Output
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.steps.cpu import open_cpu_step
from jitney.runtime.worker import StepLoop

pytestmark = [
    interpreted,
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning"),
]
"""Triton's interpreter computes masked lanes with numpy, which speaks of them."""

VOCAB = 96
CONFIG = EngineConfig(
    dtype="float32", num_threads=1, max_rows=3, max_context=512, max_batch_tokens=256, mode="deterministic"
)


def card_step(model: ModelConfig, config: EngineConfig, num_pages: int = 60, *, naive: bool = True) -> Step:
    plan = plan_device(model, config, 8 * 2**30, value_bytes=4)
    plan = msgspec.structs.replace(plan, sizes=msgspec.structs.replace(plan.sizes, num_pages=num_pages))
    weights = random_weights(model)
    return build_step(model, weights, config, plan, torch.float32, torch.device("cpu"), naive=naive)


def requests(count: int, seed: int = 0, most: int = 8) -> list[Generate]:
    rng = random.Random(seed)
    return [
        Generate(
            id=f"r{i}",
            prompt=tuple(rng.randrange(VOCAB) for _ in range(rng.choice([1, 3, 17, 64, 65, 150]))),
            sampling=RowSampling(seed=i, temperature=0.0),
            max_tokens=rng.randint(1, most),
            arrival=float(i),
        )
        for i in range(count)
    ]


def run(step: Step, jobs: Sequence[Generate]) -> tuple[dict[str, list[int]], Scheduler]:
    loop = StepLoop(step, Scheduler(step.capacity))
    tokens = play(loop, jobs)
    step.close()
    return tokens, loop.scheduler


def play(loop: StepLoop, jobs: Sequence[Generate]) -> dict[str, list[int]]:
    for job in jobs:
        loop.obey(job)
    tokens: dict[str, list[int]] = {job.id: [] for job in jobs}
    ended: dict[str, Output] = {}
    while not loop.is_idle:
        for output in spelled(loop.turn(0.0) or ()):
            tokens[output.id] += output.tokens
            if output.finish_reason:
                ended[output.id] = output
        check_books(loop.scheduler)
    assert {output.finish_reason for output in ended.values()} <= {"length", "stop_token"}
    assert len(ended) == len(jobs)
    return tokens


@pytest.mark.parametrize("changes", [{}, {"head_dim": 64, "sliding_window": 40, "num_layers": 2}])
def test_tokens_are_those_of_the_cpu_step(changes: dict[str, object]) -> None:
    model = small_llama(vocab_size=VOCAB, **changes)
    weights = random_weights(model)
    jobs = requests(6)
    expected, _ = run(
        open_cpu_step(model, weights, EngineConfig(dtype="float32", num_threads=1, max_context=512)), jobs
    )
    found, _ = run(card_step(model, CONFIG), jobs)
    assert found == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"run_ahead": 1},
        {"run_ahead": 8, "max_batch_tokens": 64},
        {"run_ahead": 3, "max_rows": 1, "max_batch_tokens": 100},
    ],
)
def test_neither_run_ahead_nor_rows_nor_chunks_change_a_token(settings: dict[str, int]) -> None:
    model = small_llama(vocab_size=VOCAB, num_layers=1)
    jobs = requests(4, seed=3, most=4)
    expected, _ = run(card_step(model, CONFIG), jobs)
    assert run(card_step(model, msgspec.structs.replace(CONFIG, **settings)), jobs)[0] == expected


def test_a_cramped_pool_preempts_and_changes_nothing() -> None:
    model = small_llama(vocab_size=VOCAB, num_layers=1)
    jobs = [
        Generate(
            id=f"r{i}", prompt=(i + 1,) * 60, sampling=RowSampling(seed=i, temperature=0.0), max_tokens=9
        )
        for i in range(3)
    ]
    roomy, _ = run(card_step(model, CONFIG), jobs)
    cramped, scheduler = run(card_step(model, CONFIG, num_pages=4), jobs)
    assert cramped == roomy
    assert scheduler.stats().preemptions


@pytest.mark.parametrize("most", [256, 64])
def test_log_probabilities_are_those_of_the_cpu_step(most: int) -> None:
    model = small_llama(vocab_size=VOCAB, num_layers=1)
    asked = RowSampling(
        seed=5,
        temperature=0.7,
        top_p=0.9,
        logprobs=3,
        logprob_token_ids=(7, 9),
        prompt_logprobs=2,
        presence_penalty=0.5,
    )
    jobs = [
        Generate(id=f"r{i}", prompt=tuple(i % VOCAB for i in range(n)), sampling=asked, max_tokens=3)
        for i, n in enumerate((5, 150))
    ]
    config = msgspec.structs.replace(CONFIG, max_batch_tokens=most)
    steps = [open_cpu_step(model, random_weights(model), CONFIG), card_step(model, config)]
    expected, found = (scores(step, jobs) for step in steps)
    assert [kind for kind, _ in found] == [kind for kind, _ in expected]
    for (_, mine), (_, twin) in zip(found, expected, strict=True):
        assert (mine is None) == (twin is None)
        if mine is not None and twin is not None:
            assert mine.token_id == twin.token_id
            assert [token for token, _ in mine.top] == [token for token, _ in twin.top]
            mine_all, twin_all = (
                [mine.logprob, *(p for _, p in mine.top)],
                [twin.logprob, *(p for _, p in twin.top)],
            )
            assert mine_all == pytest.approx(twin_all, abs=1e-4)


def scores(step: Step, jobs: Sequence[Generate]) -> list[tuple[str, TokenLogprobs | None]]:
    """Every score of every job, prompts first."""
    loop = StepLoop(step, Scheduler(step.capacity))
    for job in jobs:
        loop.obey(job)
    found: list[tuple[str, TokenLogprobs | None]] = []
    while not loop.is_idle:
        for output in spelled(loop.turn(0.0) or ()):
            assert output.error is None, output.error
            found += [(f"{output.id} prompt", score) for score in output.prompt_logprobs]
            found += [(f"{output.id} token", score) for score in output.logprobs]
    step.close()
    return sorted(found, key=lambda pair: pair[0])


def test_quiet_moments_change_nothing_for_those_who_come_later() -> None:
    """Recorded passes run for real: they must leave cached pages and the ring of results alone. The last pass that
    decoded named two slots; the pages of one now belong to a prompt that was only prefilled, and is cached."""
    model = small_llama(vocab_size=VOCAB, num_layers=1)

    def job(name: str, prompt: list[int], max_tokens: int) -> Generate:
        return Generate(
            id=name,
            prompt=tuple(prompt),
            sampling=RowSampling(seed=1, temperature=0.0),
            max_tokens=max_tokens,
        )

    text = [7 * i % VOCAB for i in range(300)]
    alone = run(card_step(model, CONFIG), [job("again", text[:200], 6)])[0]
    step = card_step(model, CONFIG, num_pages=5)
    loop = StepLoop(step, Scheduler(step.capacity))
    play(loop, [job("a", [1] * 8, 4), job("b", [2] * 10, 4)])
    play(loop, [job("c", text[:200], 1)])
    [pool] = step._forward._ops._pools  # type: ignore[attr-defined]
    pages = pool[1:].view(torch.int32).clone()  # bits, since what nobody has written may be NaN
    assert loop.prepare() and loop.prepare()
    assert torch.equal(pool[1:].view(torch.int32), pages)
    assert play(loop, [job("again", text[:200], 6)]) == alone
    assert loop.scheduler.stats().prefix_hits == 192
    step.close()
