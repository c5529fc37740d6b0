"""What only a card can show: graphs, 200 prompts at once, and the real default model. Its twins run everywhere:
`test_step.py` (run-ahead, preemption, recording) and `test_card_families.py` (kernels, in Triton's interpreter)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch

pytest.importorskip("triton")

from card import CARD, make_step
from spelled import spelled
from tiny_models import random_weights, small_llama

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.batch import RowSampling
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.messages import Generate
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.worker import StepLoop

pytestmark = pytest.mark.skipif(CARD.type != "cuda", reason="needs an NVIDIA card")
MODEL = small_llama(
    hidden_size=512,
    intermediate_size=1024,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=2048,
)
WEIGHTS = random_weights(MODEL)
COUNT = 200


def prompts() -> list[tuple[int, ...]]:
    draw = random.Random(4)
    return [tuple(draw.randrange(2048) for _ in range(draw.randint(1, 700))) for _ in range(COUNT)]


def opened(**settings: object) -> CudaStep:
    options: dict[str, object] = {
        "dtype": torch.bfloat16, "mode": "deterministic", "max_rows": 64, "max_context": 1024,
        "max_batch_tokens": 2048, "num_pages": 900,
    }  # fmt: skip
    return make_step(MODEL, WEIGHTS, **(options | settings))  # type: ignore[arg-type]


def answers(step: CudaStep, texts: Sequence[tuple[int, ...]], *, together: bool = True) -> list[list[int]]:
    loop = StepLoop(step, Scheduler(step.capacity))
    found: dict[str, list[int]] = {}
    groups = [list(enumerate(texts))] if together else [[pair] for pair in enumerate(texts)]
    for group in groups:
        for i, text in group:
            sampling = RowSampling(seed=i, temperature=0.0 if i % 2 else 0.8, top_p=0.9 if i % 3 else 1.0)
            loop.obey(Generate(id=str(i), prompt=text, sampling=sampling, max_tokens=32, arrival=float(i)))
            found[str(i)] = []
        while not loop.is_idle:
            for output in spelled(loop.turn(0.0) or ()):
                assert output.error is None, output.error
                found[output.id] += output.tokens
    return [found[str(i)] for i in range(len(texts))]


@pytest.fixture(scope="module")
def expected() -> Iterator[list[list[int]]]:
    step = opened()
    yield answers(step, prompts())
    step.close()


def test_graphs_equal_launches_one_by_one(expected: list[list[int]]) -> None:
    step = opened()
    step._graphs.clear()
    assert answers(step, prompts()) == expected
    step.close()


def test_alone_equals_together(expected: list[list[int]]) -> None:
    step = opened()
    assert answers(step, prompts(), together=False) == expected
    step.close()


def test_other_chunks_and_preemption_change_nothing(expected: list[list[int]]) -> None:
    step = opened(max_batch_tokens=192, num_pages=60)
    assert answers(step, prompts()) == expected
    step.close()


def test_a_cached_prefix_equals_a_cold_one(expected: list[list[int]]) -> None:
    step = opened(num_pages=3000)
    loop = StepLoop(step, Scheduler(step.capacity))
    for turn in range(2):
        for i, text in enumerate(prompts()):
            sampling = RowSampling(seed=i, temperature=0.0 if i % 2 else 0.8, top_p=0.9 if i % 3 else 1.0)
            loop.obey(
                Generate(id=f"{turn} {i}", prompt=text, sampling=sampling, max_tokens=32, arrival=float(i))
            )
        found: dict[str, list[int]] = {}
        while not loop.is_idle:
            for output in spelled(loop.turn(0.0) or ()):
                found[output.id] = found.get(output.id, []) + list(output.tokens)
        assert [found[f"{turn} {i}"] for i in range(COUNT)] == expected
    assert loop.scheduler.stats().prefix_hits
    step.close()


@pytest.mark.parametrize("narrow", [("quantize",), ("kv_dtype",), ("quantize", "kv_dtype")])
def test_in_eight_bits_alone_equals_together(narrow: tuple[str, ...]) -> None:
    settings = dict.fromkeys(narrow, "fp8")
    step = opened(**settings, num_pages=3000)
    expected = answers(step, prompts()[:64])
    assert answers(step, prompts()[:64]) == expected, "from cached pages"
    step.close()
    step = opened(**settings, max_batch_tokens=192)
    assert answers(step, prompts()[:64], together=False) == expected
    step.close()


@pytest.mark.parametrize("mode", ["deterministic", "fast"])
def test_padding_and_pages_of_nobody_may_hold_anything(mode: str) -> None:
    clean, poisoned = opened(mode=mode), opened(mode=mode)
    with torch.inference_mode():
        for cache in poisoned._forward._ops._caches:  # type: ignore[attr-defined]
            cache.pool.fill_(float("nan"))
    assert answers(poisoned, prompts()[:64]) == answers(clean, prompts()[:64])
    clean.close()
    poisoned.close()


def test_fast_agrees_with_deterministic_but_for_rounding(expected: list[list[int]]) -> None:
    """Random weights spread chances thinly, so that a rounding often decides; only tokens after equal ones count."""
    step = opened(mode="fast")
    found = answers(step, prompts())
    step.close()
    same, compared = 0, 0
    for mine, theirs in zip(found, expected, strict=True):
        agreed = next((i for i, pair in enumerate(zip(mine, theirs, strict=True)) if len({*pair}) > 1), 32)
        same += agreed
        compared += min(agreed + 1, 32)
    print(f"fast and deterministic: {same / compared:.4f} of the tokens after equal ones are equal")  # noqa: T201
    assert same > 0.85 * compared


async def test_the_default_models_text_is_the_cpus() -> None:
    questions = [
        f"Name one thing that is {word}." for word in "red green old new hot cold big small soft hard".split()
    ]
    questions += [f"What is {i} plus {i + 3}?" for i in range(10)]
    greedy = SamplingParams(max_tokens=64, temperature=0.0)
    texts = []
    for device in ("cpu", "cuda"):
        config = EngineConfig(
            device=device, dtype="float32", mode="deterministic", max_context=1024, max_rows=20
        )  # type: ignore[arg-type]
        async with DynamicEngine("smollm2-135m", config) as engine:
            texts.append([answer["text"] for answer in await engine.generate(questions, greedy)])
    assert texts[0] == texts[1]
