"""Every way in which a response can end, each with exactly one terminal event, and the seat comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from pace import Pace
from scripted import backend, check_empty, check_story, engine, followed, text_of

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.errors import EngineClosed, EngineDied, InvalidField, QueueFull
from jitney.runtime.testing.byte_tokenizer import END


@pytest.mark.parametrize(
    ("prompt", "params", "reason", "matched", "text"),
    [
        ("hello", SamplingParams(), "stop_token", END, "hello"),
        ("hello", SamplingParams(stop_token_ids=[ord("l")]), "stop_token", ord("l"), "he"),
        ("hello", SamplingParams(stop="ll"), "stop_string", "ll", "he"),
        ("hello", SamplingParams(max_tokens=2), "length", None, "he"),
        ("sick", SamplingParams(), "error", None, "sic"),
    ],
)
async def test_a_row_ends_by_itself(
    prompt: str, params: SamplingParams, reason: str, matched: Any, text: str
) -> None:
    async with engine() as serving:
        events = await followed(serving.stream(prompt, params))
        check_story(events)
        finish, done = events[-2], events[-1]
        assert (finish.finish_reason, finish.matched, text_of(events)) == (reason, matched, text)
        assert done.finish_reason == reason and (done.error is not None) == (reason == "error")
        assert serving.stats().finished == {reason: 1}
        await check_empty(serving)


async def test_cancelled_while_queued_running_and_twice() -> None:
    async with engine(max_rows=1) as serving:
        running = await serving.submit("first")
        queued = [await serving.submit("hello") for _ in range(4)]
        assert await anext(running.events())
        for response in [queued[3], running, *queued[:3]]:
            assert response.cancel() and not response.cancel() and not await serving.cancel(response.id)
            events = await followed(response.events())
            check_story(events)
            assert events[-1].finish_reason == "cancelled" and events[-1].error is None
        assert not await serving.cancel("nobody")
        assert text_of(await followed(running.events())) == "f"
        await check_empty(serving)


async def test_a_deadline_ends_what_waits_and_what_runs() -> None:
    async with engine(max_rows=1) as serving:
        running = await serving.submit("first", deadline_s=0.05)
        queued = [await serving.submit("hello", deadline_s=0.02) for _ in range(3)]
        for response in [running, *queued]:
            events = await followed(response.events())
            check_story(events)
            assert events[-1].finish_reason == "deadline"
        assert text_of(await followed(running.events())) == "f"
        await check_empty(serving)


async def test_a_deadline_that_is_not_reached_changes_nothing() -> None:
    async with engine() as serving:
        (answer,) = await serving.generate("hello", deadline_s=1000)
        assert answer["finish_reason"] == "stop_token"


async def test_a_sick_request_does_not_disturb_its_neighbours() -> None:
    async with engine() as serving:
        prompts = ["sick", "hello", "endless", "sick"]
        told = [answer["finish_reason"] for answer in await serving.generate(prompts)]
        assert told == ["error", "stop_token", "stop_token", "error"]


async def test_a_step_that_raises_ends_its_rows_and_the_engine_goes_on() -> None:
    async with engine() as serving:
        for _ in range(5):
            neighbour = await serving.submit("first")
            assert await anext(neighbour.events())
            events = await followed(serving.stream("crash"))
            for story in (events, await followed(neighbour.events())):
                check_story(story)
                assert story[-1].finish_reason == "error" and "the step failed" in str(story[-1].error)
            await check_empty(serving)


async def test_the_workers_death_ends_everything_and_is_told_to_later_callers() -> None:
    pace = Pace()
    pace.hold()
    async with engine(max_rows=2, pace=pace) as serving:
        open_ones = [await serving.submit(prompt) for prompt in ("hold", "death", "hello", "hello")]
        pace.go()
        for response in open_ones:
            events = await followed(response.events())
            check_story(events)
            assert events[-1].finish_reason == "error" and "the engine died" in str(events[-1].error)
        stats = serving.stats()
        assert (stats.state, stats.running, stats.waiting) == ("dead", 0, 0)
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: serving.submit("x"),
            lambda: serving.generate("x"),
            lambda: followed(serving.stream("x")),
        ]
        for call in calls:
            with pytest.raises(EngineDied) as died:
                await call()
            assert isinstance(died.value.__cause__, SystemExit)
        assert not await serving.cancel(open_ones[0].id)
        assert await serving.drain()
    assert serving.stats().state == "closed"


async def test_closing_ends_what_is_open_as_cancelled() -> None:
    async with engine(max_rows=2) as serving:
        open_ones = [await serving.submit(prompt) for prompt in ("first", "hold", "hello", "hello")]
        await anext(open_ones[0].events())
        reader = asyncio.create_task(followed(serving.stream("hello")))
        batch = asyncio.create_task(serving.generate(["hold", "hold"]))
        while serving.stats().waiting < 5:  # noqa: ASYNC110
            await asyncio.sleep(0)
    for events in [await followed(response.events()) for response in open_ones] + [await reader]:
        check_story(events)
        assert events[-1].finish_reason == "cancelled"
    assert [answer["finish_reason"] for answer in await batch] == ["cancelled"] * 2
    stats = serving.stats()
    assert (stats.state, stats.running, stats.waiting, stats.kv_pages_used) == ("closed", 0, 0, 0)
    await serving.close()


async def test_draining_lets_the_accepted_end_and_refuses_the_rest() -> None:
    async with engine(max_rows=1) as serving:
        accepted = [await serving.submit("endless") for _ in range(3)]
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(0)
        with pytest.raises(EngineClosed, match="draining"):
            await serving.submit("x")
        with pytest.raises(EngineClosed, match="draining"):
            await serving.generate(["x"])
        assert await draining
        for response in accepted:
            assert response.finish_reasons == ["stop_token"]


async def test_a_drain_out_of_time_says_so() -> None:
    async with engine() as serving:
        await serving.submit("hold")
        assert not await serving.drain(timeout_s=0.01)


async def test_calls_before_the_start_and_after_the_end_are_refused() -> None:
    serving = engine()
    for has_served in (False, True):
        for call in (
            lambda: serving.submit("x"),
            lambda: serving.generate("x"),
            lambda: followed(serving.stream("x")),
        ):
            with pytest.raises(EngineClosed):
                await call()  # type: ignore[no-untyped-call]
        assert not await serving.cancel("x")
        assert await serving.drain()
        assert serving.response("x") is None
        assert serving.stats().state == "closed"
        await serving.close()
        if not has_served:
            async with serving:
                await serving.generate("x")
    with pytest.raises(EngineClosed, match="once"):
        await serving.start()


async def test_closing_while_starting_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    go, made = threading.Event(), backend()
    open_step = made.open_step

    def slow(config: EngineConfig) -> Any:
        go.wait(60)
        return open_step(config)

    monkeypatch.setattr(made, "open_step", slow)
    serving = DynamicEngine(made)
    starting = asyncio.create_task(serving.start())
    while serving._worker is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    closing = asyncio.create_task(serving.close())
    await asyncio.sleep(0)
    go.set()
    await closing
    with pytest.raises(EngineClosed):
        await starting
    assert serving.stats().state == "closed"


async def test_closing_while_the_model_is_found_leaves_nothing_behind() -> None:
    serving = engine()
    starting = asyncio.create_task(serving.start())
    await asyncio.sleep(0)
    await serving.close()
    with pytest.raises(EngineClosed):
        await starting
    assert serving.stats().state == "closed"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jitney")]


async def test_a_start_that_fails_says_why_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in ((MemoryError("no room"), MemoryError), (SystemExit("gone"), EngineDied)):
        made = backend()

        def fail(config: EngineConfig, error: BaseException = error) -> Any:
            raise error

        monkeypatch.setattr(made, "open_step", fail)
        with pytest.raises(expected):
            await DynamicEngine(made).start()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jitney")]


async def test_the_watchdog_ends_an_engine_whose_step_does_not_return() -> None:
    now, gate, stuck = [0.0], threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        stuck.set()
        gate.wait(60)

    made = backend()
    made._sleep = sleep
    serving = DynamicEngine(made, EngineConfig(step_timeout_s=100), clock=lambda: now[0])
    async with serving:
        response = await serving.submit("hold")
        await asyncio.to_thread(stuck.wait, 60)
        now[0] = 99.0
        serving._watch()
        assert serving.stats().state == "ready" and serving.stats().step_age_s == 99.0
        now[0] = 101.0
        serving._watch()
        events = await followed(response.events())
        check_story(events)
        assert events[-1].finish_reason == "error" and "has not returned" in str(events[-1].error)
        with pytest.raises(EngineDied):
            await serving.submit("x")
        gate.set()
        await serving._stopped
        assert serving.stats().running == 0


async def test_an_idle_engine_is_not_taken_for_stuck() -> None:
    now = [0.0]
    async with DynamicEngine(backend(), clock=lambda: now[0]) as serving:
        await serving.generate("hello")
        await serving.generate("hello")
        while serving._worker is None or serving._worker.is_busy:  # noqa: ASYNC110
            await asyncio.sleep(0)
        now[0] = 1e6
        serving._watch()
        assert serving.stats().state == "ready"


async def test_a_full_queue_refuses_at_once() -> None:
    async with engine(max_rows=1, max_queued=3) as serving:
        accepted = []
        with pytest.raises(QueueFull, match="3 requests") as refused:
            for _ in range(20):
                accepted.append(await serving.submit("hold"))
        assert len(accepted) <= 3 + 2 and refused.value.retry_after_s >= 1
        accepted[-1].cancel()
        await serving.submit("hello")
        for response in accepted:
            response.cancel()
        await check_empty(serving)


async def test_an_id_in_use_is_refused_and_free_again_when_forgotten() -> None:
    async with engine(keep_finished_bytes=10_000) as serving:
        await serving.submit("hold", response_id="mine")
        with pytest.raises(InvalidField, match="response_id"):
            await serving.submit("x", response_id="mine")
        await serving.cancel("mine")
        with pytest.raises(InvalidField, match="response_id"):
            await serving.submit("x", response_id="mine")
        await serving.generate("endless")
        assert serving.response("mine") is None
        assert (await serving.generate("x", response_id="mine"))[0]["id"] == "mine"


async def test_finished_responses_are_kept_for_their_time() -> None:
    now = [0.0]
    async with DynamicEngine(backend(), EngineConfig(keep_finished_s=10), clock=lambda: now[0]) as serving:
        (first,) = await serving.generate("hello")
        now[0] = 10.0
        (second,) = await serving.generate("hello")
        kept = serving.response(first["id"])
        assert kept is not None and text_of(await followed(kept.events())) == "hello"
        now[0] = 10.5
        assert serving.response(first["id"]) is None and serving.response(second["id"]) is not None
        now[0] = 100.0
        assert serving.response(second["id"]) is None


async def test_long_prompts_count_against_what_is_kept() -> None:
    async with engine(keep_finished_bytes=100_000) as serving:
        answers = [(await serving.generate("x" * 4000, SamplingParams(max_tokens=1)))[0] for _ in range(10)]
        assert sum(serving.response(answer["id"]) is not None for answer in answers) < 5


async def test_an_open_response_is_never_forgotten() -> None:
    async with engine(keep_finished_bytes=1) as serving:
        response = await serving.submit("hold")
        answers = await serving.generate(["hello"] * 20)
        assert serving.response(response.id) is response
        assert all(serving.response(answer["id"]) is None for answer in answers)


async def test_many_closes_at_once_and_a_start_that_is_cancelled() -> None:
    serving = engine()
    await serving.start()
    await serving.submit("hold")
    await asyncio.gather(*(serving.close() for _ in range(5)))
    assert serving.stats().state == "closed"
    starting = asyncio.create_task((serving := engine()).start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert serving.stats().state == "closed"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jitney")]
