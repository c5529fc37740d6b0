"""Warm-ups: they prefill and generate nothing, and their pages stay through other traffic until they are let go."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from books import check_books, check_pages
from simulated_engine import CONTEXT, SimulatedBackend, check_empty
from simulated_loop import SimulatedLoop, run_simulated, simulated_worker

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.batch import Capacity, RowSampling
from jitney.runtime.engines import dynamic
from jitney.runtime.errors import InvalidField
from jitney.runtime.messages import Generate
from jitney.runtime.pages import PagePool
from jitney.runtime.pins import Pins
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.testing.scripted_step import ScriptedStep
from jitney.runtime.worker import StepLoop

PAGE = 4
PROMPT = "the same beginning of each and every one of the prompts"


def simulate(
    monkeypatch: pytest.MonkeyPatch, body: Any, *, contexts: int = 4, depth: int = 0, **config: Any
) -> None:
    """Run `body(engine)` on a pool of so many whole contexts, the books checked after every turn."""
    rng = random.Random(depth)
    capacity = Capacity(num_pages=contexts * CONTEXT // PAGE + 1, page_size=PAGE, max_rows=4, depth=depth)
    monkeypatch.setattr(dynamic, "Worker", simulated_worker(rng, lambda steps: check_books(steps.scheduler)))
    settings = EngineConfig(
        **{"max_batch_tokens": 16, "step_timeout_s": 1e6, "tune_process": False, **config}
    )

    async def main(loop: SimulatedLoop) -> None:
        async with DynamicEngine(SimulatedBackend(rng, capacity), settings, clock=loop.time) as engine:
            await body(engine)
            await engine.drain()
            await asyncio.sleep(1000)
            await check_empty(engine)

    run_simulated(main)


async def warm_up(engine: DynamicEngine, prompt: str = PROMPT) -> Any:
    response = await engine.submit(prompt, SamplingParams(), warm_up=True)
    await response.log.wait_sealed()
    return response


async def traffic(engine: DynamicEngine, count: int = 30) -> None:
    """Enough other prompts to turn the whole pool over."""
    prompts = [f"{number} is another prompt that has nothing in common" for number in range(count)]
    await engine.generate(prompts, SamplingParams(max_tokens=20, seed=1))


@pytest.mark.parametrize("depth", [0, 2])
def test_a_warm_up_prefills_shows_nothing_and_outlasts_other_traffic(
    monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    async def body(engine: DynamicEngine) -> None:
        warm = await warm_up(engine)
        finish, done = warm.log.read(0)
        assert (finish.text, finish.token_ids, finish.finish_reason) == ("", (), "length")
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(PROMPT), 0)
        held = len(PROMPT) // PAGE
        while engine.stats().kv_pages_used != held:  # noqa: ASYNC110 - the worker's counters have no event
            await asyncio.sleep(1)
        await traffic(engine)
        (answer,) = await engine.generate(PROMPT + "!", SamplingParams(max_tokens=3, seed=1))
        assert answer["usage"]["cached_tokens"] == held * PAGE
        (cold,) = await engine.generate(
            PROMPT + "!", SamplingParams(max_tokens=3, seed=1), use_prefix_cache=False
        )
        assert cold["tokens"] == answer["tokens"]
        assert warm.forget() and not warm.forget()
        while engine.stats().kv_pages_used:  # noqa: ASYNC110
            await asyncio.sleep(1)
        await traffic(engine)
        (late,) = await engine.generate(PROMPT + "!", SamplingParams(max_tokens=3, seed=1))
        assert late["usage"]["cached_tokens"] < held * PAGE

    simulate(monkeypatch, body, depth=depth)


def test_pins_go_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine) -> None:
        await warm_up(engine)
        await asyncio.sleep(40)
        assert engine.stats().kv_pages_used
        await asyncio.sleep(30)
        assert not engine.stats().kv_pages_used, "with nobody asking"

    simulate(monkeypatch, body, keep_finished_s=60)


@pytest.mark.parametrize("depth", [0, 2])
def test_pins_give_way_to_rows_that_need_their_pages(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    async def body(engine: DynamicEngine) -> None:
        await warm_up(engine)
        long = await engine.generate(["x" * (CONTEXT - 8)] * 3, SamplingParams(max_tokens=8, seed=3))
        assert all(answer["finish_reason"] in ("length", "stop_token") for answer in long)

    simulate(monkeypatch, body, contexts=1, depth=depth)


def test_a_warm_up_can_be_cancelled_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine) -> None:
        for wait_s in (0.0, 0.001, 0.01, 0.2):
            response = await engine.submit(PROMPT, SamplingParams(), warm_up=True)
            await asyncio.sleep(wait_s)
            response.cancel()
            await response.log.wait_sealed()
        await check_empty(engine)

    simulate(monkeypatch, body, keep_finished_s=1)


def test_a_warm_up_has_one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine) -> None:
        with pytest.raises(InvalidField, match="^n: expected 1"):
            await engine.submit(PROMPT, SamplingParams(n=2), warm_up=True)

    simulate(monkeypatch, body)


def test_the_budget_keeps_the_newest_and_the_first_pages() -> None:
    pool = PagePool(20)
    pins = Pins(pool, 5)
    rows = {name: pool.take(3) for name in "abc"}
    for name, pages in rows.items():
        pins.pin(name, pages)
        pool.give_back(pages)
    assert pins.pages == rows["c"] and pins.num_pages == pool.num_used == 3
    large = pool.take(9)
    pins.pin("large", large)
    pool.give_back(large)
    assert pins.pages == large[:5] and pool.num_used == 5
    pins.release("a")
    pins.release("large")
    assert not pins.release_oldest() and pool.num_used == 0
    check_pages(pool)


def test_a_warm_up_beside_a_row_with_its_prompt_pins_the_pages_that_are_found() -> None:
    capacity = Capacity(num_pages=41, page_size=PAGE, max_rows=4, max_batch_tokens=64)
    loop = StepLoop(ScriptedStep(capacity, lambda row: 7), Scheduler(capacity))
    seating, shared = loop.scheduler.seating, tuple(range(33))

    def play(*requests: Generate) -> int:
        """Tokens that the prefix cache gave."""
        before = seating.num_hit
        for request in requests:
            loop.obey(request)
        while not loop.is_idle:
            loop.turn(0.0)
        return seating.num_hit - before

    def asked(name: str, prompt: tuple[int, ...], **more: Any) -> Generate:
        fields = {"max_tokens": 2, "sampling": RowSampling(seed=0)} | more
        return Generate(id=name, prompt=prompt, **fields)

    play(asked("row", shared), asked("warm", shared, max_tokens=0, pin=True, arrival=1.0))
    for other in range(4):
        play(asked(f"other {other}", tuple(range(1000 * other + 100, 1000 * other + 160))))
    assert play(asked("later", (*shared, 5))) == 32
