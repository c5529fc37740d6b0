"""Law 6 to the last bit: a row's log-probabilities over the whole vocabulary do not depend on its neighbours, on how
its prompt is cut, on its page numbers, on what was cached, or on whether the pass is compiled. Own kernels and torch
each keep it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from processors import HAS_INT8, NO_INT8, needs_int8
from step_driver import Driver, Row
from tiny_models import random_weights, small_llama

from jitney.runtime.batch import Chunk, RowSampling, TokenLogprobs
from jitney.runtime.config import EngineConfig
from jitney.runtime.native.library import library
from jitney.runtime.steps import cpu
from jitney.runtime.steps.cpu import CpuStep, open_cpu_step
from jitney.runtime.steps.kernels import choose_kernels
from jitney.runtime.steps.memory import PAGE_TOKENS, plan_memory
from jitney.runtime.steps.slots import Slots
from jitney.runtime.steps.torch_forward import TorchForward

VOCAB = 512
MODEL = small_llama(
    hidden_size=576,
    intermediate_size=1536,
    num_layers=2,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    dtype="float32",
)
SLIDING = small_llama(
    num_heads=2, num_kv_heads=2, head_dim=96, sliding_window=100, sliding_layers=(True, False, True)
)
MODES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize": "int8"},
}
SAMPLED = RowSampling(seed=11, temperature=1.3, top_p=0.95, logprobs=VOCAB)
MATE = RowSampling(seed=12, temperature=1.3, min_p=0.01)
COUNT = 4


def config(mode: str) -> EngineConfig:
    return EngineConfig(max_rows=40, max_context=1024, kv_cache_bytes=2**27, **MODES[mode])


PATHS = [*[(mode, "torch") for mode in MODES], ("bfloat16", "native"), ("int8", "native")]
CASES = [(*path, kind) for path in PATHS for kind in ("grouped", "sliding")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def step(request: pytest.FixtureRequest) -> Iterator[CpuStep]:
    mode, path, kind = request.param
    if path == "native" and library().kernels is None:
        pytest.skip(library().reason)
    if mode == "int8" and not HAS_INT8:
        pytest.skip(NO_INT8)
    model = MODEL if kind == "grouped" else SLIDING
    with pytest.MonkeyPatch.context() as patched:
        if path == "torch":
            patched.setattr(cpu, "why_not", lambda *_: "the test says so")
        opened = open_cpu_step(model, random_weights(model), config(mode))
    yield opened  # type: ignore[misc]
    opened.close()


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(VOCAB), k=length)


def row(length: int, cuts: tuple[int, ...] = ()) -> Row:
    return Row(prompt(length), SAMPLED, cuts)


def bits(row: Row) -> list[TokenLogprobs]:
    return [entry for outcome in row.outcomes for entry in outcome.logprobs]


def alone(step: CpuStep, length: int, count: int = COUNT) -> list[TokenLogprobs]:
    one = row(length)
    Driver(step).generate([one], count)
    assert len(bits(one)) == count
    return bits(one)


@pytest.mark.parametrize("length", [1, 290])
def test_batch_mates(step: CpuStep, length: int) -> None:
    expected = alone(step, length)
    for others in ([5], [40, 300, 7], [9] * 31 + [530]):
        rows = [Row(prompt(other, 7), MATE) for other in others]
        mine = row(length)
        Driver(step).generate([*rows[:2], mine, *rows[2:]], COUNT)
        assert bits(mine) == expected


@pytest.mark.parametrize("cuts", [(64, 65), (1, 31, 100, 287)])
def test_chunks(step: CpuStep, cuts: tuple[int, ...]) -> None:
    mine = row(290, cuts)
    Driver(step).generate([mine], COUNT)
    assert bits(mine) == alone(step, 290)


def test_page_numbers(step: CpuStep) -> None:
    pages = list(range(1, 60))
    random.Random(3).shuffle(pages)
    mine = row(290)
    Driver(step, pages).generate([Row(prompt(64)), mine], COUNT, slots=[17, 3])
    assert bits(mine) == alone(step, 290)


def test_cached_prefix_and_preemption(step: CpuStep) -> None:
    expected = alone(step, 290, 9)
    driver = Driver(step)
    first = row(290)
    driver.generate([first], 4)
    again = Row(first.prompt, SAMPLED, generated=first.generated)
    seat = driver.seat(5, again, 9, start=288, pages=(*driver.tables[0][:9], *driver.pages_for(32)))
    got = list(driver.run([seat], [Chunk(5, 288, 6, True)])[5].logprobs)
    while len(got) < 5:
        got += driver.run(decodes=[5])[5].logprobs
    assert got == expected[4:]


@pytest.mark.parametrize("mode", ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)])
def test_compiled_and_eager(mode: str) -> None:
    settings = msgspec.structs.replace(config(mode), tune_process=False)
    kernels = choose_kernels(MODEL, settings)
    plan = plan_memory(MODEL, settings, 4, 0, None)
    results = []
    for compiled in (True, False):
        slots = Slots(40, plan.context // PAGE_TOKENS)
        forward = TorchForward(
            MODEL, random_weights(MODEL), settings, kernels, plan, slots, compiled=compiled
        )
        step = CpuStep(forward, slots, plan, tuned=False)
        results.append(alone(step, 70))
        step.close()
    assert results[0] == results[1]
