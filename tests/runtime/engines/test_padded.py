"""Plain padded batches: the same answers as continuous batching, one batch at a time."""

from __future__ import annotations

import asyncio
import threading

import pytest
from scripted import backend, check_story, followed, text_of
from scripted_padded import BrokenBackend, PagelessBackend

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.engines.padded import PaddedEngine
from jitney.runtime.errors import EngineClosed, InvalidField, ModelError, RequestError


async def opened(made: PagelessBackend, **config: int) -> PaddedEngine:
    engine = PaddedEngine(made, EngineConfig(**config))
    await engine.start()
    return engine


async def test_answers_are_those_of_continuous_batching() -> None:
    prompts = ["hello", "sick", "é😀", "endless", "hello"]
    params = [
        SamplingParams(n=2, prompt_logprobs=0, logprobs=0),
        SamplingParams(),
        SamplingParams(stop="😀"),
        SamplingParams(max_tokens=7),
        SamplingParams(stop_token_ids=[ord("l")], include_stop_str_in_output=True),
    ]
    async with DynamicEngine(backend(3)) as dynamic:
        expected = await dynamic.generate(prompts, params)
    padded = await opened(PagelessBackend(3))
    told = await padded.generate(prompts, params)
    await padded.close()
    for ours, theirs in zip(told, expected, strict=True):
        for field in (
            "text",
            "tokens",
            "choices",
            "finish_reason",
            "prompt_token_ids",
            "prompt_logprobs",
            "error",
        ):
            if field != "choices" and field != "prompt_logprobs":
                assert ours[field] == theirs[field]
        assert [(c["text"], c["finish_reason"], c["matched"]) for c in ours["choices"]] == [
            (c["text"], c["finish_reason"], c["matched"]) for c in theirs["choices"]
        ]
    assert [s and s["token_id"] for s in told[0]["prompt_logprobs"]] == [None, *b"ello"]
    assert told[0]["usage"]["completion_tokens"] == expected[0]["usage"]["completion_tokens"]


async def test_prompts_run_in_batches_of_the_rows_there_are() -> None:
    made = PagelessBackend(4)
    padded = await opened(made)
    told = await padded.generate(["hello"] * 5, SamplingParams(n=2))
    assert [answer["text"] for answer in told] == ["hello"] * 5
    assert made.padded.runs == [4, 4, 2] and made.padded.num_closed_runs == 3
    assert padded.stats().finished == {"stop_token": 10}
    await padded.close()
    assert made.padded.is_closed and padded.stats().state == "closed"


async def test_a_stream_is_the_whole_answer() -> None:
    padded = await opened(PagelessBackend())
    for output in ("delta", "cumulative", "final"):
        events = await followed(padded.stream("hello", SamplingParams(n=2, output=output)))  # type: ignore[arg-type]
        check_story(events, 2)
        if output == "delta":
            assert text_of(events, 1) == "hello"
        else:
            assert [e.text for e in events if e.kind == "finish"] == ["hello", "hello"]
    await padded.close()


async def test_leaving_a_stream_ends_its_batch() -> None:
    made = PagelessBackend()
    padded = await opened(made)
    events = padded.stream("endless", response_id="mine")
    assert (await anext(events)).text == "e"
    assert padded.stats().running == 1
    await events.aclose()
    assert made.padded.num_closed_runs == 1
    assert padded.stats().running == 0 and padded.stats().finished == {"cancelled": 1}
    assert (await padded.generate("again", response_id="mine"))[0]["text"] == "again"
    await padded.close()


async def test_cancelled_by_id_from_within_and_while_it_waits_its_turn() -> None:
    padded = await opened(PagelessBackend(1))
    reading = asyncio.create_task(followed(padded.stream("endless", response_id="first")))
    waiting = asyncio.create_task(padded.generate("hello", response_id="second"))
    while padded.stats().running < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert await padded.cancel("second") and await padded.cancel("first") and not await padded.cancel("first")
    check_story(await reading)
    (answer,) = await waiting
    assert answer["finish_reason"] == "cancelled"
    await padded.close()


async def test_a_reader_that_holds_its_stream_holds_nobody_up() -> None:
    padded = await opened(PagelessBackend(1))
    events = padded.stream("endless")
    await anext(events)
    assert (await padded.generate("hello"))[0]["text"] == "hello"
    await padded.close()
    assert (await anext(events)).kind in ("delta", "finish")
    await events.aclose()


async def test_a_deadline_ends_a_row() -> None:
    now = [0.0]
    padded = PaddedEngine(PagelessBackend(), clock=lambda: now[0])
    await padded.start()
    events = padded.stream("endless", deadline_s=5)
    await anext(events)
    now[0] = 5.0
    assert [event.finish_reason async for event in events][-1] == "deadline"
    await padded.close()


async def test_a_step_that_raises_ends_its_rows_and_the_next_call_works() -> None:
    padded = await opened(PagelessBackend())
    for answer in await padded.generate(["hello", "crash"]):
        assert answer["finish_reason"] == "error" and "the step failed" in answer["error"]
    events = await followed(padded.stream("crash"))
    check_story(events)
    assert events[-1].finish_reason == "error"
    assert (await padded.generate("hello"))[0]["text"] == "hello"
    assert padded.stats().running == 0
    await padded.close()


async def test_a_bad_prompt_and_nothing_runs() -> None:
    made = PagelessBackend()
    padded = await opened(made)
    with pytest.raises(RequestError):
        await padded.generate(["hello", 5])  # type: ignore[list-item]
    for _ in range(2):
        with pytest.raises(InvalidField, match="response_id"):
            await padded.generate(["a", "b"], response_id="same")
    assert made.padded.runs == [] and padded.stats().running == 0
    await padded.close()


async def test_closing_amid_batches_ends_them_all() -> None:
    padded = await opened(PagelessBackend(1))
    batch = asyncio.create_task(padded.generate(["endless"] * 3))
    stream = padded.stream("endless")
    reading = asyncio.create_task(followed(stream))
    while padded.stats().running < 4:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await padded.close()
    assert {answer["finish_reason"] for answer in await batch} == {"cancelled"}
    assert (await reading)[-1].finish_reason == "cancelled"
    await padded.close()
    with pytest.raises(EngineClosed):
        await padded.generate("x")


async def test_draining_refuses_and_waits() -> None:
    padded = await opened(PagelessBackend())
    reading = asyncio.create_task(followed(padded.stream("endless")))
    while not padded.stats().running:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not await padded.drain(timeout_s=0)
    with pytest.raises(EngineClosed, match="draining"):
        await padded.generate("x")
    assert await padded.drain()
    assert (await reading)[-1].finish_reason == "stop_token"
    await padded.close()


async def test_a_model_that_cannot_be_opened_leaves_no_thread() -> None:
    with pytest.raises(ModelError, match=r"weights\.bin"):
        await opened(BrokenBackend())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jitney")]
