"""What an engine answers: whole and streamed alike, one prompt or many, whatever else runs."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest
from scripted import backend, check_empty, check_story, engine, followed, text_of

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.batch import Batch, Capacity, Step, Ticket
from jitney.runtime.errors import (
    ContextLengthExceeded,
    InvalidField,
    JitneyError,
    ModelError,
    QueueFull,
    RequestError,
)
from jitney.runtime.observer import Observer
from jitney.runtime.response import Response
from jitney.runtime.testing import ScriptedBackend
from jitney.runtime.testing.byte_tokenizer import END


async def test_an_answer_holds_what_its_docstring_says() -> None:
    async with engine() as serving:
        (answer,) = await serving.generate("hi", SamplingParams(logprobs=1, prompt_logprobs=0, n=2))
    assert {"id", "prompt", "prompt_token_ids", "choices", "text", "tokens", "finish_reason"} <= answer.keys()
    assert (answer["prompt"], answer["prompt_token_ids"], answer["text"]) == ("hi", [104, 105], "hi")
    assert answer["tokens"] == [104, 105, END] and answer["finish_reason"] == "stop_token"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice in answer["choices"]:
        assert (choice["text"], choice["matched"], len(choice["logprobs"])) == ("hi", END, 3)
    assert answer["prompt_logprobs"][0] is None and answer["prompt_logprobs"][1]["token_id"] == 105
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "cached_tokens": 0}
    assert 0 <= answer["times"]["queued_s"] <= answer["times"]["first_token_s"] <= answer["times"]["total_s"]
    assert answer["error"] is None


async def test_many_more_prompts_than_seats_or_places_in_the_queue() -> None:
    prompts = [f"prompt {number}" for number in range(300)]
    async with engine(max_rows=2, max_queued=5) as serving:
        answers = await serving.generate(prompts)
        assert [answer["text"] for answer in answers] == prompts
        await check_empty(serving)


async def test_the_answer_that_may_become_longest_begins_first() -> None:
    """One without a limit counts as the longest, and equals stay in order."""
    limits = [3, None, 5, 3, 9, None]
    ended: list[str] = []

    class Ends(Observer):
        def ended(self, response: Response) -> None:
            ended.append(response.id)

    async with engine(max_rows=1) as serving:
        serving.observers.append(Ends())
        params = [SamplingParams(max_tokens=limit) for limit in limits]
        answers = await serving.generate(["endless"] * len(limits), params)
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [limit or 3201 for limit in limits]
    assert [ended.index(answer["id"]) for answer in answers] == [4, 0, 3, 5, 2, 1]


async def test_a_batch_waits_for_room_that_its_own_prompts_take() -> None:
    prompts = ["x" * 60] * 20
    async with engine(max_rows=1, max_queued_tokens=100) as serving:
        assert [answer["text"] for answer in await serving.generate(prompts)] == prompts


async def test_a_batch_is_refused_where_others_fill_the_queue() -> None:
    async with engine(max_rows=1, max_queued=1) as serving:
        with pytest.raises(QueueFull):
            for _ in range(10):
                await serving.submit("hold")
        with pytest.raises(QueueFull):
            await serving.generate(["hello"] * 3)


async def test_one_bad_prompt_and_nothing_runs() -> None:
    async with engine() as serving:
        for bad, error in ((5, InvalidField), ("x" * 5000, ContextLengthExceeded)):
            with pytest.raises(error):
                await serving.generate(["hello", bad, "hello"])  # type: ignore[list-item]
        with pytest.raises(InvalidField):
            await serving.generate(["a", "b"], [SamplingParams(), SamplingParams(stop_token_ids=[9999])])
        with pytest.raises(InvalidField, match="response_id"):
            await serving.generate(["a", "b"], response_id="one for two")
        stats = serving.stats()
        assert (stats.steps, stats.finished, stats.prompt_tokens) == (0, {}, 0)


async def test_each_prompt_with_its_own_parameters() -> None:
    async with engine() as serving:
        told = await serving.generate(
            ["hello", "hello"], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=3)]
        )
        assert [answer["text"] for answer in told] == ["h", "hel"]
        with pytest.raises(InvalidField, match="sampling_params"):
            await serving.generate(["hello", "hello"], [SamplingParams()])


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        ([], []),
        ("hi", ["hi"]),
        (["hi"], ["hi"]),
        ([104, 105], ["hi"]),
        ([[104], [105]], ["h", "i"]),
        ([{"role": "user", "content": "hi"}], ["hi"]),
        ([[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]], ["a", "b"]),
        (["a", [98], [{"role": "user", "content": "c"}]], ["a", "b", "c"]),
        (("a", "b"), ["a", "b"]),
    ],
)
async def test_every_form_of_prompts(prompts: Any, texts: list[str]) -> None:
    async with engine() as serving:
        assert [answer["text"] for answer in await serving.generate(prompts)] == texts


async def test_eight_choices_share_the_prompt_and_have_one_done() -> None:
    async with engine(max_rows=3) as serving:
        events = await followed(serving.stream("endless", SamplingParams(n=8, max_tokens=50)))
        check_story(events, 8)
        assert {text_of(events, index) for index in range(8)} == {("endless " * 400)[:50]}
        assert events[-1].usage is not None and events[-1].usage.completion_tokens == 400
        await check_empty(serving)


async def test_a_stop_string_ends_one_choice_and_leaves_the_others() -> None:
    async with engine() as serving:
        (answer,) = await serving.generate("endless", SamplingParams(n=3, stop="ess end"))
        assert [choice["text"] for choice in answer["choices"]] == ["endl"] * 3
        await check_empty(serving)


async def test_priority_and_then_arrival() -> None:
    async with engine(max_rows=1) as serving:
        holding = [await serving.submit("hold") for _ in range(2)]
        finished: list[str] = []

        async def follow(name: str, priority: int) -> None:
            response = await serving.submit("hello", priority=priority, response_id=name)
            await response.log.wait_sealed()
            finished.append(name)

        async with asyncio.TaskGroup() as group:
            for name, priority in (("late", 9), ("b", 0), ("urgent", -9), ("c", 0)):
                task = group.create_task(follow(name, priority))
                while serving.response(name) is None:
                    await asyncio.wait([task], timeout=0.001)
            for response in holding:
                response.cancel()
        assert finished == ["urgent", "b", "c", "late"]


async def test_the_prompts_cached_part_is_told() -> None:
    async with engine() as serving:
        prompt = "x" * 100
        told = [(await serving.generate(prompt, **options))[0]["usage"]["cached_tokens"] for options in (
            {}, {}, {"cache_salt": "other"}, {"cache_salt": "other"}, {"use_prefix_cache": False},
        )]  # fmt: skip
        assert told == [0, 96, 0, 96, 0]


async def test_a_salt_cannot_name_the_pages_of_a_request_that_shares_none() -> None:
    async with engine() as serving:
        await serving.generate("x" * 100, response_id="secret", use_prefix_cache=False)
        (answer,) = await serving.generate("x" * 100, cache_salt="only:secret")
        assert answer["usage"]["cached_tokens"] == 0


class Cramped(ScriptedBackend):
    """Pages for little more than one whole context. Nothing is launched before `gate` is set."""

    gate = threading.Event()

    def open_step(self, config: EngineConfig) -> Step:
        step = super().open_step(config)
        step.capacity = Capacity(12, 16, 4)
        launch = step.launch

        def gated(batch: Batch) -> Ticket:
            assert self.gate.wait(60)
            return launch(batch)

        step.launch = gated  # type: ignore[method-assign]
        return step


async def test_prompt_logprobs_come_once_each_through_chunks_and_preemption() -> None:
    cramped = Cramped(backend(4, 160).script)
    async with DynamicEngine(cramped, EngineConfig(max_batch_tokens=16, max_context=160)) as serving:
        prompts = [f"{number}" * 40 for number in range(5)]
        params = SamplingParams(prompt_logprobs=0, max_tokens=60)
        for _ in range(2):
            cramped.gate.clear()
            responses = [await serving.submit("end" + prompt, params) for prompt in prompts]
            cramped.gate.set()
            for response, prompt in zip(responses, prompts, strict=True):
                events = await followed(response.events())
                check_story(events)
                scores = [s for e in events for s in e.prompt_logprobs or ()]
                assert [s and s.token_id for s in scores] == [None, *("end" + prompt).encode()[1:]]
        assert serving.stats().preemptions > 0
        await check_empty(serving)


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(stop="l", n=2), SamplingParams(logprobs=2)]
)
async def test_streamed_and_whole_are_the_same(params: SamplingParams) -> None:
    async with engine() as serving:
        for prompt in ("hello é😀", "endless", "sick"):
            (whole,) = await serving.generate(prompt, params)
            events = await followed(serving.stream(prompt, params))
            for choice in whole["choices"]:
                mine = [event for event in events if event.index == choice["index"]]
                assert "".join(event.text for event in mine) == choice["text"]
                assert [token for event in mine for token in event.token_ids] == choice["token_ids"]


async def test_ten_thousand_waiting_requests_cancelled_in_random_order() -> None:
    rng = random.Random(0)
    async with engine(max_rows=1, max_queued=10_000, keep_finished_bytes=100_000) as serving:
        began = time.process_time()
        waiting = [
            await serving.submit("hold", user=rng.choice("ab"), deadline_s=1000) for _ in range(10_000)
        ]
        rng.shuffle(waiting)
        for response in waiting:
            assert response.cancel()
        await check_empty(serving)
        assert sum(serving.response(response.id) is not None for response in waiting) < 1000
        assert time.process_time() - began < 60


HOSTILE_PROMPTS: list[Any] = [
    None, 5, 5.0, True, b"x", {"role": "user"}, {1}, object(), [None], [[]], [[[]]], [-1], [2**80], [True], [1, "a"],
    ["a", 1], "",
    [""], "\ud800", ["\udfff"], [{}], [{"role": "user"}], [{"role": []}], [{"role": "user", "content": 5}],
    [[{"role": "user", "content": "x"}, 5]], "x" * 10_000, [0] * 100_000, lambda: "x", [float("nan")], range(300),
]  # fmt: skip


async def test_hostile_prompts_get_one_clear_error_and_harm_nobody() -> None:
    async with engine() as serving:
        neighbour = await serving.submit("first")
        for prompt in HOSTILE_PROMPTS:
            for call in (serving.generate, lambda p: followed(serving.stream(p)), serving.submit):
                with pytest.raises(RequestError) as refused:
                    await call(prompt)
                assert refused.value.field and len(str(refused.value)) < 400
        assert not neighbour.done and serving.stats().finished == {}
        await asyncio.wait_for(serving.generate("still here"), 60)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("deadline_s", value) for value in (0, -1, float("nan"), float("inf"), "1", True)),
        *(("response_id", value) for value in ("", 5, [], "\ud800", "x" * 10_000)),
        *(("user", value) for value in (None, 5, "x" * 10_000)),
        *(("priority", value) for value in (None, 1.5, 10**30, True)),
        *(("cache_salt", value) for value in (None, b"x")),
        *(("template_options", value) for value in (5, [1])),
        ("use_prefix_cache", "yes"),
        ("unknown", 1),
    ],
)
async def test_hostile_options_are_refused_by_name(field: str, value: Any) -> None:
    async with engine() as serving:
        for call in (serving.generate, lambda p, **o: followed(serving.stream(p, **o)), serving.submit):
            with pytest.raises(InvalidField) as refused:
                await call("hello", **{field: value})
            assert refused.value.field == field


@pytest.mark.parametrize("params", [5, "greedy", {"temperature": 0}, object(), [5], SamplingParams])
async def test_parameters_of_another_kind_are_refused(params: Any) -> None:
    async with engine() as serving:
        for call in (serving.generate, lambda *a: followed(serving.stream(*a)), serving.submit):
            with pytest.raises(InvalidField, match="sampling_params"):
                await call("hello", params)


@pytest.mark.parametrize("config", [5, "x", {"max_rows": 1}, EngineConfig])
def test_settings_of_another_kind_are_refused(config: Any) -> None:
    with pytest.raises(InvalidField, match="config"):
        DynamicEngine(backend(), config)


@pytest.mark.parametrize("model", [None, 5, [], b"smollm2-135m", object()])
async def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="model: expected a name"):
        await DynamicEngine(model).start()


@pytest.mark.parametrize("name", [" ", "a\nb", "é😀", "../../etc/passwd", "x" * 256, "\0"])
async def test_odd_response_ids_are_only_names(name: str) -> None:
    async with engine() as serving:
        (answer,) = await serving.generate("hello", response_id=name)
        assert answer["id"] == name and serving.response(name) is not None


async def test_the_largest_wish_is_served_as_far_as_the_context_goes() -> None:
    async with engine(context_length=64) as serving:
        with pytest.raises(JitneyError, match="max_tokens 2147483647"):
            await serving.generate("hello", SamplingParams(n=8, max_tokens=2**31 - 1))
        (answer,) = await serving.generate("endless", SamplingParams(n=8))
        assert answer["usage"]["completion_tokens"] == 8 * (64 - len("endless"))


async def test_a_reader_that_stalls_costs_nobody_else_and_catches_up_merged() -> None:
    async with engine(max_rows=2) as serving:
        stalled = (await serving.submit("endless")).events()
        first = await anext(stalled)
        assert (await serving.generate("endless"))[0]["text"] == "endless " * 400
        rest = await followed(stalled)
        assert first.text + text_of(rest) == "endless " * 400 and len(rest) < 10
