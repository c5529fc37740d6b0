"""The engine as a guest: no thread, task, descriptor, setting or handler stays behind, and every loop is served."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import pytest
from scripted import check_empty, check_story, engine, followed, text_of

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.errors import EngineClosed, EngineError

uvloop = pytest.importorskip("uvloop") if sys.platform != "win32" else None
T = Any


def in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread of its own, and raise here what it raised there."""
    told: list[Any] = []

    def run() -> None:
        try:
            told.append((function(), None))
        except BaseException as error:
            told.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    (value, error), *_ = told
    if error is not None:
        raise error
    return value


async def elsewhere(make: Callable[[], Awaitable[T]]) -> T:
    """Await on another loop in another thread, while this loop runs on."""

    async def whole() -> T:
        return await make()

    return await asyncio.to_thread(lambda: in_thread(lambda: asyncio.run(whole())))


def residue() -> tuple[int, int, dict[int, Any], float]:
    process = psutil.Process()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return process.num_fds(), threading.active_count(), handlers, sys.getswitchinterval()


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are counted on POSIX")
def test_a_hundred_lives_leave_nothing_behind() -> None:
    async def life() -> None:
        async with engine() as serving:
            await serving.generate(["hello", "sick"])
            await serving.submit("hold")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(life())
    before = residue()
    for _ in range(100):
        asyncio.run(life())
    gc.collect()
    assert residue() == before


async def test_many_lives_on_one_loop() -> None:
    before = threading.active_count()
    for _ in range(30):
        async with engine() as serving:
            await anext(serving.stream("first"))
    assert threading.active_count() == before
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_switch_interval_is_held_while_any_engine_is_open_and_may_be_refused() -> None:
    before = sys.getswitchinterval()
    async with engine(tune_process=False):
        assert sys.getswitchinterval() == before
        async with engine():
            async with engine():
                assert sys.getswitchinterval() < before
            assert sys.getswitchinterval() < before
        assert sys.getswitchinterval() == before


async def test_a_close_that_is_cancelled_still_gives_the_settings_back() -> None:
    before = sys.getswitchinterval()
    serving = engine()
    await serving.start()
    closing = asyncio.create_task(serving.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert sys.getswitchinterval() == before


async def test_breaking_out_of_a_stream_gives_the_seat_back() -> None:
    async with engine(max_rows=1) as serving:
        async for event in serving.stream("first"):
            assert event.text == "f"
            break
        await check_empty(serving)
        assert serving.stats().finished["cancelled"] == 1


async def test_cancelling_the_reading_task_gives_the_seat_back() -> None:
    async with engine(max_rows=1) as serving:
        for prompt in ("hold", "first"):
            reader = asyncio.create_task(followed(serving.stream(prompt)))
            while not serving.stats().running:  # noqa: ASYNC110
                await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await check_empty(serving)


async def test_cancelling_a_generate_gives_every_seat_back() -> None:
    async with engine(max_rows=2) as serving:
        batch = asyncio.create_task(serving.generate(["hold"] * 5))
        while serving.stats().waiting < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        await check_empty(serving)
        assert serving.stats().finished["cancelled"] == 5


async def test_an_abandoned_stream_is_cancelled_when_it_is_collected() -> None:
    async with engine(max_rows=1) as serving:
        holder: dict[str, Any] = {"stream": serving.stream("first")}
        holder["cycle"] = holder
        assert (await anext(holder["stream"])).text == "f"
        collected = weakref.ref(holder["stream"])
        del holder
        while collected() is not None:  # a collection on the worker's thread makes one here do nothing
            gc.collect()
        await check_empty(serving)
        assert serving.stats().finished["cancelled"] == 1


async def test_a_timeout_around_a_stream_gives_the_seat_back() -> None:
    async with engine(max_rows=1) as serving:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await followed(serving.stream("first"))
        await check_empty(serving)


async def test_leaving_a_handle_early_does_not_cancel() -> None:
    async with engine() as serving:
        response = await serving.submit("endless")
        async for _ in response.events():
            break
        again = await followed(response.events())
        check_story(again)
        assert text_of(again) == "endless " * 400 and response.finish_reasons == ["stop_token"]


async def test_another_loop_generates_streams_cancels_and_drains() -> None:
    async with engine() as serving:
        (answer,) = await elsewhere(lambda: serving.generate("hello"))
        assert answer["text"] == "hello"
        events = await elsewhere(lambda: followed(serving.stream("endless")))
        check_story(events)
        assert text_of(events) == "endless " * 400
        held = await serving.submit("hold")
        assert await elsewhere(lambda: serving.cancel(held.id))
        assert held.finish_reasons == ["cancelled"]
        assert in_thread(serving.stats).state == "ready"
        with pytest.raises(EngineError, match="loop"):
            await elsewhere(lambda: serving.submit("x"))
        assert await elsewhere(serving.drain)
        with pytest.raises(EngineClosed, match="draining"):
            await elsewhere(lambda: serving.generate("x"))
        await elsewhere(serving.close)
        assert serving.stats().state == "closed"


async def test_a_reader_on_another_loop_that_leaves_cancels() -> None:
    async with engine(max_rows=1) as serving:

        async def leave_early() -> None:
            async for event in serving.stream("first"):
                assert event.text == "f"
                break

        async def time_out() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await followed(serving.stream("first"))

        async def be_cancelled() -> None:
            task = asyncio.create_task(serving.generate(["hold", "hold"]))
            while serving.stats().waiting < 1:  # noqa: ASYNC110
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        for attempt in (leave_early, time_out, be_cancelled):
            await elsewhere(attempt)
            await check_empty(serving)


async def test_a_reader_elsewhere_that_gives_up_while_the_engines_loop_is_busy_is_told_so() -> None:
    async with engine(max_rows=1) as serving:
        asked, told = threading.Event(), list[BaseException]()

        async def give_up() -> None:
            async with asyncio.timeout(0.02):
                asked.set()
                await followed(serving.stream("hold"))

        def run() -> None:
            try:
                asyncio.run(give_up())
            except BaseException as error:
                told.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        asked.wait(60)
        threading.Event().wait(0.1)  # the loop is busy for longer than the reader's patience
        await asyncio.to_thread(thread.join, 60)
        assert [type(error) for error in told] == [TimeoutError]
        await check_empty(serving)


async def test_who_closes_an_engine_that_is_being_closed_waits_for_its_end() -> None:
    serving, before = engine(), threading.active_count()
    await serving.start()
    first, second = asyncio.create_task(serving.close()), asyncio.create_task(serving.close())
    await second
    assert first.done() and not any(
        thread.name.startswith("jitney-worker") for thread in threading.enumerate()
    )
    await first
    assert threading.active_count() <= before + 1


def test_an_engine_whose_loop_stands_still_refuses_callers_elsewhere() -> None:
    serving, home = engine(), asyncio.new_event_loop()
    home.run_until_complete(serving.start())
    with pytest.raises(EngineClosed, match="not running"):
        asyncio.run(serving.generate("x"))
    home.run_until_complete(serving.close())
    home.close()
    asyncio.run(serving.close())


async def test_errors_reach_the_caller_on_another_loop() -> None:
    async with engine() as serving:
        for bad in (5, [[]], ["x", 5]):
            with pytest.raises(Exception, match="prompt"):
                await elsewhere(lambda bad=bad: serving.generate(bad))  # type: ignore[misc]
        with pytest.raises(Exception, match="prompt"):
            await elsewhere(lambda: followed(serving.stream(5)))  # type: ignore[arg-type]


def test_after_its_loop_is_gone_an_engine_refuses_and_can_still_be_closed() -> None:
    serving = engine()
    before = threading.active_count(), sys.getswitchinterval()
    asyncio.run(serving.start())
    for call in (
        lambda: serving.generate("x"),
        lambda: serving.drain(),
        lambda: followed(serving.stream("x")),
    ):
        with pytest.raises(EngineClosed, match="loop"):
            asyncio.run(call())  # type: ignore[arg-type]
    asyncio.run(serving.close())
    assert (threading.active_count(), sys.getswitchinterval()) == before


async def test_a_caller_elsewhere_is_told_when_the_engines_loop_ends() -> None:
    serving, started = engine(), threading.Event()

    async def owner() -> None:
        await serving.start()
        started.set()
        while not serving.stats().running:  # noqa: ASYNC110
            await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(owner()))
    thread.start()
    await asyncio.to_thread(started.wait, 60)
    with pytest.raises(EngineClosed, match="has ended"):
        await serving.generate("hold")
    await asyncio.to_thread(thread.join, 60)
    await serving.close()


def test_a_busy_worker_ends_when_its_loop_is_gone() -> None:
    serving = engine()

    async def leave() -> None:
        await serving.start()
        await serving.submit("hold")

    asyncio.run(leave())
    assert serving._worker is not None and serving._worker.join(60)
    asyncio.run(serving.close())


@pytest.mark.skipif(uvloop is None, reason="uvloop is not for Windows")
def test_on_uvloop() -> None:
    async def life() -> None:
        async with engine(max_rows=1) as serving:
            check_story(await followed(serving.stream("endless")))
            await anext(serving.stream("first"))
            await check_empty(serving)
            assert (await elsewhere(lambda: serving.generate("hello")))[0]["text"] == "hello"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life())


def test_on_a_thread_that_is_not_the_main_one() -> None:
    async def life() -> str:
        async with engine() as serving:
            return str((await serving.generate("hello"))[0]["text"])

    assert in_thread(lambda: asyncio.run(life())) == "hello"


async def test_two_engines_at_once_do_not_mix() -> None:
    async with engine() as one, engine() as other:
        held = await one.submit("hold", response_id="same")
        answers = await other.generate("hello", response_id="same")
        assert answers[0]["text"] == "hello" and not held.done
        await one.close()
        assert (await other.generate("still here"))[0]["text"] == "still here"


async def test_submitting_while_it_closes_is_refused_or_ends() -> None:
    for turns in range(12):
        serving = engine(max_rows=1)
        await serving.start()

        async def client(serving: DynamicEngine = serving) -> str:
            try:
                params = SamplingParams(bad_words=["x"])
                return str((await followed(serving.stream("hello", params)))[-1].finish_reason)
            except EngineClosed:
                return "refused"

        clients = [asyncio.create_task(client()) for _ in range(8)]
        batch = asyncio.create_task(serving.generate(["hello"] * 8))
        for _ in range(turns):
            await asyncio.sleep(0)
        await serving.close()
        assert set(await asyncio.gather(*clients)) <= {"refused", "cancelled", "stop_token"}
        try:
            assert {a["finish_reason"] for a in await batch} <= {"cancelled", "stop_token"}
        except EngineClosed:
            pass


async def test_cancels_that_overtake_their_requests_cost_no_seat() -> None:
    async with engine(max_rows=2) as serving:
        for _ in range(50):
            for response in [await serving.submit("hello") for _ in range(4)]:
                response.cancel()
        assert len(await serving.generate(["hello"] * 10)) == 10
        await check_empty(serving)


async def test_one_wake_up_of_the_loop_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    async with DynamicEngine(engine(max_rows=8)._model, EngineConfig()) as serving:
        loop, wakes = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *a, **k: (wakes.append(a), wake(*a, **k))[1])
        await serving.generate(["endless"] * 8)
        assert 0 < len(wakes) < 1.1 * serving.stats().steps + 50
