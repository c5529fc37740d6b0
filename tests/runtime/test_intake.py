"""The edge: what is accepted becomes exactly this, and what is refused names its field."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict, UserDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jitney.runtime import DynamicEngine
from jitney.runtime.backend import GenerationDefaults
from jitney.runtime.errors import ContextLengthExceeded, InvalidField, RequestError
from jitney.runtime.intake import Intake, Options
from jitney.runtime.messages import Generate
from jitney.runtime.params import SamplingParams
from jitney.runtime.testing import Script, ScriptedBackend
from jitney.runtime.testing.byte_tokenizer import ASSISTANT, END, SYSTEM, USER, ByteTokenizer

CONTEXT = 32


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


class Edge:
    """An intake over the byte tokenizer, at the time 100."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.backend = ScriptedBackend(Script(context_length=CONTEXT))
        self.intake = Intake(self.backend, CONTEXT, executor, lambda: 100.0)

    async def __call__(
        self, prompt: Any = "hi", params: SamplingParams | None = None, **options: Any
    ) -> Generate:
        return await self.intake.accept(prompt, params or SamplingParams(), Options(**options))


@pytest.fixture
def edge(executor: ThreadPoolExecutor) -> Edge:
    return Edge(executor)


async def test_text_is_encoded_as_it_stands(edge: Edge) -> None:
    assert (await edge("h\0é<user>")).prompt == tuple("h\0é<user>".encode())


async def test_the_bos_comes_before_a_text_unless_it_is_told_not_to(edge: Edge) -> None:
    tokenizer: Any = edge.backend.tokenizer
    tokenizer.encode = lambda text, *, add_bos=True: [7] * add_bos + list(text.encode())
    assert (await edge("h")).prompt == (7, *b"h")
    assert (await edge("h", add_bos=False)).prompt == (*b"h",)
    with pytest.raises(InvalidField, match="add_bos"):
        await edge("h", add_bos=1)


async def test_what_is_banned_after_others_reaches_the_row(edge: Edge) -> None:
    params = SamplingParams(
        bad_token_sequences=[[1, 2], [3]], bad_token_ids=[4], top_p_decay=0.5, top_p_bound=0.1
    )
    sampling = (await edge("h", params)).sampling
    assert sampling.bad_token_sequences == ((4,), (1, 2), (3,))
    assert (sampling.top_p_decay, sampling.top_p_bound) == (0.5, 0.1)
    with pytest.raises(InvalidField, match="bad_token_sequences: expected token ids from 0 to"):
        await edge("h", SamplingParams(bad_token_sequences=[[1], [2, 5000]]))


async def test_ids_become_text_again_with_special_tokens(edge: Edge) -> None:
    assert await edge.intake.decode([104, 105, END]) == "hi" + edge.backend.tokenizer.token_text(END)


@pytest.mark.parametrize("ids", [[1, 2, 259], (1, 2, 259), range(3)])
async def test_token_ids_are_taken_as_they_are(edge: Edge, ids: Any) -> None:
    assert (await edge(ids)).prompt == tuple(ids)


async def test_messages_are_rendered(edge: Edge) -> None:
    messages = [
        {"role": "system", "content": "s"},
        OrderedDict(role="user", content=[{"type": "text", "text": "u"}]),
    ]
    assert (await edge(messages)).prompt == (SYSTEM, ord("s"), USER, ord("u"), ASSISTANT)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "\ud800",
        [],
        (),
        b"bytes",
        bytearray(b"x"),
        5,
        None,
        {"role": "user", "content": "x"},
        {1, 2},
        iter([1]),
        [[1]],
        [1, "a"],
        [{"role": "user", "content": "x"}, 1],
        [UserDict({"role": "user"})],
        [1.0],
        [True],
        [None],
        [-1],
        [260],
        [2**70],
        [math.nan],
    ],
)
async def test_what_is_no_prompt_is_refused(edge: Edge, prompt: Any) -> None:
    with pytest.raises(InvalidField) as refused:
        await edge(prompt)
    assert refused.value.field == "prompt"


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": "wizard", "content": "x"},
        {"role": [], "content": "x"},
        {"role": None, "content": "x"},
        {"role": "user"},
        {"role": "user", "content": 5},
        {"role": "user", "content": "\ud800"},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{"type": "text", "text": 5}]},
        {"role": "user", "content": [{"type": "image_url"}]},
    ],
)
async def test_a_bad_message_is_refused_with_its_number(edge: Edge, message: Any) -> None:
    with pytest.raises(RequestError) as refused:
        await edge([{"role": "user", "content": "fine"}, message])
    assert str(refused.value.field).startswith("messages[1].")


async def test_the_rest_of_the_context_is_the_limit(edge: Edge) -> None:
    assert (await edge([1] * 10)).max_tokens == CONTEXT - 10
    assert (await edge([1] * (CONTEXT - 1))).max_tokens == 1
    assert (await edge([1] * 10, SamplingParams(max_tokens=CONTEXT - 10))).max_tokens == CONTEXT - 10


@pytest.mark.parametrize(
    ("length", "max_tokens", "field"),
    [
        (CONTEXT, None, "prompt"),
        (CONTEXT * 1000, None, "prompt"),
        (10, CONTEXT - 9, "max_tokens"),
        (CONTEXT, 1, "prompt"),
    ],
)
async def test_what_does_not_fit_the_context_is_refused(
    edge: Edge, length: int, max_tokens: int | None, field: str
) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"{length} tokens.* {CONTEXT} tokens") as refused:
        await edge([1] * length, SamplingParams(max_tokens=max_tokens))
    assert refused.value.field == field and refused.value.code == "context_length_exceeded"


async def test_min_tokens_beyond_the_room_are_refused(edge: Edge) -> None:
    assert (await edge([1] * 30, SamplingParams(min_tokens=2))).sampling.min_tokens == 2
    with pytest.raises(InvalidField, match="min_tokens: expected at most 2"):
        await edge([1] * 30, SamplingParams(min_tokens=3))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_token_ids", [1, 260]),
        ("bad_token_ids", [260]),
        ("stop_token_ids", [260]),
        ("logprob_token_ids", [2**64]),
        ("logit_bias", {260: 1.0}),
    ],
)
async def test_ids_beyond_the_vocabulary_are_refused_by_name(edge: Edge, field: str, value: Any) -> None:
    with pytest.raises(InvalidField) as refused:
        await edge("hi", SamplingParams(logprobs=0, **{field: value}))
    assert refused.value.field == field


async def test_the_last_id_of_the_vocabulary_is_taken(edge: Edge) -> None:
    sampling = (await edge("hi", SamplingParams(stop_token_ids=[259], logit_bias={259: 1}))).sampling
    assert 259 in sampling.end_token_ids and sampling.logit_bias == ((259, 1.0),)


async def test_every_spelling_of_a_bad_word_is_banned(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteTokenizer, "word_sequences", lambda self, word: [(1, len(word)), (2, len(word))])
    sampling = (await edge("hi", SamplingParams(bad_words=["a", "bcd"], bad_token_ids=[7]))).sampling
    assert sampling.bad_token_sequences == ((1, 1), (2, 1), (1, 3), (2, 3), (7,))


async def test_the_models_defaults_fill_what_is_not_given(edge: Edge) -> None:
    edge.backend.defaults = GenerationDefaults(
        end_token_ids=(5, 6), temperature=0.6, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.2
    )
    told = (await edge()).sampling
    assert (told.temperature, told.top_p, told.top_k, told.min_p, told.repetition_penalty) == (
        0.6,
        0.9,
        40,
        0.1,
        1.2,
    )
    assert told.end_token_ids == (5, 6)
    given = SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1, stop_token_ids=[9])
    told = (await edge("hi", given)).sampling
    assert (told.temperature, told.top_p, told.top_k, told.min_p, told.repetition_penalty) == (
        0.0,
        1.0,
        0,
        0.0,
        1.0,
    )
    assert told.end_token_ids == (5, 6, 9)


async def test_neutral_values_stand_where_nobody_says_anything(edge: Edge) -> None:
    edge.backend.defaults = GenerationDefaults()
    told = (await edge("hi", SamplingParams(top_k=-1))).sampling
    assert (told.temperature, told.top_p, told.top_k, told.min_p, told.repetition_penalty) == (
        1.0,
        1.0,
        0,
        0.0,
        1.0,
    )
    assert told.end_token_ids == ()


async def test_ignore_eos_keeps_only_the_ids_asked_for(edge: Edge) -> None:
    assert (await edge("hi", SamplingParams(ignore_eos=True))).sampling.end_token_ids == ()
    sampling = (await edge("hi", SamplingParams(ignore_eos=True, stop_token_ids=[9, 3]))).sampling
    assert sampling.end_token_ids == (3, 9)
    assert (await edge()).sampling.end_token_ids == (END,)


async def test_every_other_parameter_reaches_the_row(edge: Edge) -> None:
    params = SamplingParams(
        seed=2**64 - 1,
        presence_penalty=1,
        frequency_penalty=-1,
        allowed_token_ids=[3, 1, 3],
        min_tokens=2,
        n=3,
        logprobs=4,
        logprob_token_ids=[8],
        prompt_logprobs=5,
        max_tokens=6,
    )
    request = await edge("hi", params)
    told = request.sampling
    assert (told.seed, told.presence_penalty, told.frequency_penalty) == (2**64 - 1, 1.0, -1.0)
    assert (told.allowed_token_ids, told.min_tokens, told.logprobs) == ((1, 3), 2, 4)
    assert (told.logprob_token_ids, told.prompt_logprobs) == ((8,), 5)
    assert (request.n, request.max_tokens) == (3, 6)


async def test_without_a_seed_each_request_draws_its_own(edge: Edge) -> None:
    assert (await edge()).sampling.seed != (await edge()).sampling.seed
    assert (await edge("hi", SamplingParams(seed=0))).sampling.seed == 0


async def test_options_reach_the_request(edge: Edge) -> None:
    request = await edge(
        "hi",
        priority=-3,
        deadline_s=2.5,
        user="u",
        cache_salt="é",
        use_prefix_cache=False,
        response_id="mine",
    )
    assert (request.id, request.priority, request.user, request.salt) == ("mine", -3, "u", "é".encode())
    assert (request.arrival, request.deadline, request.use_prefix_cache) == (100.0, 102.5, False)
    assert (await edge()).id != (await edge()).id and (await edge()).deadline is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("priority", value) for value in (101, -101, True, 1.0, "1", None, math.nan, 10**400)),
        *(("deadline_s", value) for value in (0, -1, math.nan, math.inf, True, "1", [], 10**400)),
        *(
            (field, value)
            for field in ("user", "cache_salt")
            for value in (None, 5, b"x", "x" * 257, "\ud800")
        ),
        *(("response_id", value) for value in ("", 5, [], {}, b"x", "x" * 257, "\udfff", True)),
        *(("use_prefix_cache", value) for value in (None, 0, "no")),
        *(("template_options", value) for value in (5, "x", [("a", 1)])),
    ],
)
def test_a_bad_option_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidField) as refused:
        Options(**{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize("name", ["x", "x" * 256, "a/b\n\0", "é😀", "../etc", " "])
def test_any_printable_label_is_taken(name: str) -> None:
    assert Options(response_id=name, user=name, cache_salt=name).response_id == name


async def test_tokenising_leaves_the_loop_free_and_visits_the_tokenizer_one_at_a_time(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most, go = 0, 0, threading.Event()

    def slow(self: ByteTokenizer, text: str, *, add_bos: bool = True) -> list[int]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        go.wait(60)
        inside -= 1
        return [1]

    monkeypatch.setattr(ByteTokenizer, "encode", slow)
    tasks = [asyncio.create_task(edge("x")) for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    go.set()
    await asyncio.gather(*tasks)
    assert most == 1


class Unread(ByteTokenizer):
    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        raise AssertionError("tokenised what cannot fit")


@pytest.mark.parametrize(
    "prompt",
    [
        "x" * 5000,
        [{"role": "user", "content": "x" * 5000}],
        [{"role": "user", "content": [{"text": "x" * 5000}]}],
    ],
)
async def test_what_cannot_fit_is_refused_before_it_is_tokenised(prompt: Any) -> None:
    backend = ScriptedBackend()
    backend.tokenizer = Unread()
    async with DynamicEngine(backend) as engine:
        with pytest.raises(ContextLengthExceeded, match="5000 characters cannot fit the context of 4096"):
            await engine.submit(prompt)
