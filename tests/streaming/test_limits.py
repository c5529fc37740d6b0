"""Every limit of a request at n - 1, n, n + 1 and 1000 n, and values that are no numbers: the right status, at once."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pace import Pace

from jitney.runtime import DynamicEngine
from jitney.runtime.errors import InvalidField
from jitney.runtime.testing import ByteTokenizer, Reply, Script, ScriptedBackend
from jitney.streaming import create_app
from jitney.streaming.protocols.messages import MAX_PARTS, chat_messages, input_messages

BODY_BYTES = 200_000
CONTEXT = 4096
REFUSAL_S = 0.5
"""Of the processor's time, which no other process takes: ten times what a refusal needs."""

Build = Callable[[int], dict[str, Any]]


def message(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1}


def chat(**fields: Any) -> dict[str, Any]:
    return {**message("hi"), **fields}


def completion(**fields: Any) -> dict[str, Any]:
    return {"prompt": "hi", "max_tokens": 1, **fields}


def response(**fields: Any) -> dict[str, Any]:
    return {"input": "x", "max_output_tokens": 1, **fields}


def megatron(**fields: Any) -> dict[str, Any]:
    return {"prompts": ["hi"], "tokens_to_generate": 1, **fields}


CHAT, COMPLETION, MEGATRON = "POST /v1/chat/completions", "POST /v1/completions", "PUT /api"
RESPONSES = "POST /v1/responses"
TOKENIZE, DETOKENIZE, TICKETS = "POST /v1/tokenize", "POST /v1/detokenize", "POST /v1/ws-tickets"

COUNTS: dict[str, tuple[str, int, Build]] = {
    "stops": (CHAT, 16, lambda n: chat(stop=["x"] * n)),
    "stop characters": (CHAT, 256, lambda n: chat(stop="x" * n)),
    "choices": (CHAT, 8, lambda n: chat(n=n)),
    "top_logprobs": (CHAT, 20, lambda n: chat(logprobs=True, top_logprobs=n)),
    "bad_words": (CHAT, 1024, lambda n: chat(bad_words=["x"] * n)),
    "bad_token_ids": (CHAT, 1024, lambda n: chat(bad_token_ids=[1] * n)),
    "allowed_token_ids": (CHAT, 1024, lambda n: chat(allowed_token_ids=[1] * n)),
    "stop_token_ids": (CHAT, 1024, lambda n: chat(stop_token_ids=[1] * n)),
    "logprob_token_ids": (CHAT, 1024, lambda n: chat(logprobs=True, logprob_token_ids=[1] * n)),
    "priority": (CHAT, 100, lambda n: chat(priority=n)),
    "max_tokens": (COMPLETION, CONTEXT - 2, lambda n: completion(max_tokens=n, stop_token_ids=[120])),
    "prompt tokens": (COMPLETION, CONTEXT - 1, lambda n: completion(prompt=[65] * n)),
    "prompts": (COMPLETION, 64, lambda n: completion(prompt=["x"] * n)),
    "logprobs": (COMPLETION, 20, lambda n: completion(logprobs=n)),
    "metadata": (RESPONSES, 16, lambda n: response(metadata={str(i): "" for i in range(n)})),
    "a key of metadata": (RESPONSES, 64, lambda n: response(metadata={"k" * n: "v"})),
    "a value of metadata": (RESPONSES, 512, lambda n: response(metadata={"k": "v" * n})),
    "megatron's prompts": (MEGATRON, 128, lambda n: megatron(prompts=["x"] * n)),
    "megatron's top_k": (MEGATRON, 1000, lambda n: megatron(top_k=n)),
    "detokenized": (DETOKENIZE, CONTEXT, lambda n: {"tokens": [65] * n}),
    "tokenized": (TOKENIZE, CONTEXT * ByteTokenizer().longest_token, lambda n: {"prompt": "x" * n}),
    "a ticket's user": (TICKETS, 128, lambda n: {"user": "x" * n}),
    "a ticket's instructions": (TICKETS, 16_384, lambda n: {"instructions": "x" * n}),
    "a body": (CHAT, BODY_BYTES, lambda n: {"padding": n}),
}
AROUND = {"n - 1": lambda n: n - 1, "n": lambda n: n, "n + 1": lambda n: n + 1, "1000 n": lambda n: 1000 * n}


@asynccontextmanager
async def client_of_an_engine(
    reply: Reply = Reply(text="x"),  # noqa: B008
    *,
    pace: Pace | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    script, pace = Script(reply=[reply], context_length=CONTEXT, max_rows=8), pace or Pace()
    async with DynamicEngine(ScriptedBackend(script, clock=pace.clock, sleep=pace.sleep)) as engine:
        app = create_app(engine, max_body_bytes=BODY_BYTES)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
        assert engine.stats().running == engine.stats().waiting == 0


def written(body: dict[str, Any]) -> bytes:
    """`padding` is the size of a body that is otherwise right."""
    if "padding" in body:
        return json.dumps(chat()).encode().ljust(body["padding"])
    return json.dumps(body).encode()


async def ask(client: httpx.AsyncClient, route: str, body: bytes) -> tuple[int, float]:
    method, path = route.split(" ")
    start = time.process_time()
    answer = await client.request(method, path, content=body)
    return answer.status_code, time.process_time() - start


@pytest.mark.parametrize("limit", COUNTS)
async def test_a_limit(limit: str) -> None:
    route, most, build = COUNTS[limit]
    async with client_of_an_engine() as client:
        for name, around in AROUND.items():
            raw = written(build(around(most)))
            status, seconds = await ask(client, route, raw)
            if name in ("n - 1", "n"):
                assert status == 200, name
            else:
                assert status == (413 if len(raw) > BODY_BYTES else 400), name
                assert seconds < REFUSAL_S, name


NO_NUMBERS: list[Any] = [
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    "1",
    [],
    {},
    [1],
    10**30,
    -(10**30),
    10**4000,
]
NUMBERS = {
    CHAT: (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "min_tokens",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "priority",
        "deadline_ms",
    ),
    COMPLETION: ("temperature", "max_tokens", "n", "logprobs", "seed", "deadline_ms"),
    MEGATRON: (
        "tokens_to_generate",
        "temperature",
        "top_k",
        "top_p",
        "random_seed",
        "stop_token",
        "top_p_decay",
        "top_p_bound",
        "length_penalty",
    ),
}
BUILD: dict[str, Callable[..., dict[str, Any]]] = {CHAT: chat, COMPLETION: completion, MEGATRON: megatron}


@pytest.mark.parametrize("route", NUMBERS)
async def test_what_is_no_number_is_refused_by_name(route: str) -> None:
    async with client_of_an_engine() as client:
        method, path = route.split(" ")
        for field in NUMBERS[route]:
            for value in NO_NUMBERS:
                raw = _json(BUILD[route](**{field: value}))
                start = time.process_time()
                answer = await client.request(method, path, content=raw)
                assert time.process_time() - start < REFUSAL_S
                error = answer.json()["error"]
                assert answer.status_code == 400 and error["param"] in (field, "body"), (
                    field,
                    str(value)[:40],
                )
                assert error["param"] == field or value == 10**4000


def _json(body: dict[str, Any]) -> bytes:
    """Python's own writer takes no integer of thousands of digits."""
    return (
        json.dumps({k: "HUGE" if v == 10**4000 else v for k, v in body.items()})
        .replace('"HUGE"', "1" + "0" * 4000)
        .encode()
    )


SURROGATE = b'"\\ud800"'


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, b'{"messages": [{"role": "user", "content": %s}]}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "user": %s}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "stop": [%s]}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], %s: 1}'),
        (COMPLETION, b'{"prompt": %s}'),
        (COMPLETION, b'{"prompt": "x", "cache_salt": %s}'),
        (MEGATRON, b'{"prompts": [%s]}'),
        (TOKENIZE, b'{"prompt": %s}'),
        (TICKETS, b'{"instructions": %s}'),
    ],
)
async def test_lone_surrogates_are_refused(route: str, body: bytes) -> None:
    async with client_of_an_engine() as client:
        status, seconds = await ask(client, route, body % SURROGATE)
        assert status == 400 and seconds < REFUSAL_S


@pytest.mark.parametrize(
    "raw", [b"[" * BODY_BYTES, b'{"a":' * 30_000, b"\x00" * 1000, b"\xff" * BODY_BYTES, b""]
)
async def test_bodies_that_are_no_json(raw: bytes) -> None:
    async with client_of_an_engine() as client:
        for route in (CHAT, COMPLETION, MEGATRON, TOKENIZE, DETOKENIZE, TICKETS):
            status, seconds = await ask(client, route, raw)
            assert status in (400, 413) and seconds < REFUSAL_S


async def test_a_refusal_waits_for_nobody() -> None:
    """Behind a prompt that is being tokenised and a full queue."""
    pace = Pace()
    pace.hold()
    async with client_of_an_engine(Reply(text="x", first_token_s=0.01), pace=pace) as client:
        busy = [asyncio.create_task(client.post("/v1/completions", json=completion())) for _ in range(50)]
        async with asyncio.timeout(60):
            status, _ = await ask(client, CHAT, _json(chat(temperature=9)))
        assert status == 400 and not any(each.done() for each in busy)
        pace.go()
        assert [answer.status_code for answer in await asyncio.gather(*busy)] == [200] * 50


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.streaming.http.BODY_S", 0.02)

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"prompt":'
        await asyncio.Event().wait()

    async with client_of_an_engine() as client:
        answer = await client.post("/v1/completions", content=slow())
        assert answer.status_code == 408 and answer.headers["connection"] == "close"


@pytest.mark.parametrize("take", [chat_messages, input_messages])
def test_messages_and_their_parts_are_counted_together(take: Any) -> None:
    part = {"type": "text" if take is chat_messages else "input_text", "text": ""}
    one = {"role": "user", "content": [part] * 100}
    rest = [{"role": "user", "content": ""}] * (MAX_PARTS - 101)
    for most, is_taken in ((rest[1:], True), (rest, True), ([*rest, one], False), (rest * 1000, False)):
        start = time.process_time()
        if is_taken:
            assert len(take([one, *most])) == len(most) + 1
        else:
            with pytest.raises(InvalidField, match=f"up to {MAX_PARTS} messages and parts"):
                take([one, *most])
            assert time.process_time() - start < REFUSAL_S
