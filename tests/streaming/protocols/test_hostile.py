"""Whatever comes in, a protocol answers with a clear refusal: never another exception, never a 5xx."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest

from jitney.runtime.errors import RequestError
from jitney.streaming.protocols.chat import ChatCompletion
from jitney.streaming.protocols.completions import Completion
from jitney.streaming.protocols.create import HTTP_FIELDS, Create
from jitney.streaming.protocols.errors import refusal
from jitney.streaming.protocols.fields import parse
from jitney.streaming.protocols.session import ResponsesSession

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "é"}]}]
SEEDS = [
    {"model": "m", "messages": MESSAGES, "temperature": 0.5, "n": 2, "logit_bias": {"5": 1}, "stop": ["x"]},
    {
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "seed": 3,
    },
    {"model": "m", "prompt": [[1, 2], "a"], "echo": True, "logprobs": 2, "max_tokens": 3, "deadline_ms": 5.5},
    {"type": "response.create", "stream_id": "a", "input": [{"role": "user", "content": "x"}], "include": []},
    {"type": "response.create", "input": "x", "metadata": {"a": "b"}, "previous_response_id": "resp_1"},
    {"type": "response.cancel", "response_id": "resp_1"},
    {"type": "response.steer", "previous_response_id": "resp_1", "input": "x"},
    {"type": "jitney:response.resume", "response_id": "resp_1", "starting_after": 3, "stream_id": "b"},
    {"type": "jitney:credit", "response_id": "resp_1", "credit": 3},
    {"input": "x", "stream": True, "jitney": {"on_disconnect": "detach", "detach_ttl_s": 3}},
    {"type": "response.create", "input": "x", "generate": False, "jitney": {"credit": 3, "priority": 1}},
    {"input": [{"type": "reasoning", "summary": []}, {"role": "user", "content": "x"}], "background": True},
]
ODD = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    2**64,
    10**40,
    1.5,
    -1e308,
    "",
    "\x00",
    "é" * 300,
    [],
    [[]],
    {},
    {"": {}},
]
ODD += [[None], {"a": None}, "response.create", "5", [{"role": "user"}]]
RAW = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"\xff\xfe",
    b'{"messages": "\\ud800"}',
    b'{"input": "\\udc00\\ud800"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"prompt": ' + b"[" * 600 + b"]" * 600 + b"}",
    b'{"messages": [' + b'{"role": ' * 600 + b"1" + b"}" * 600 + b"]}",
    b"9" * 5000,
    b'{"temperature": 1e999}',
    b'{"seed": ' + b"9" * 4000 + b"}",
    b'{"prompt": "x", "seed": ' + b"9" * 4000 + b"}",
    b'{"prompt": "x", "deadline_ms": ' + b"9" * 400 + b"}",
    b'{"prompt": "x", "logit_bias": {"' + b"9" * 4000 + b'": 1}}',
    b'{"prompt": "x", "logit_bias": {"\\u0665": 1, "\xc2\xb2": 1}}',
]


def mutate(rng: random.Random, value: Any) -> Any:
    """A copy with one thing in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        action = rng.random()
        if action < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.2:
            return {**value, rng.choice(["wibble", "", "\x00", "n", "stop", "input"]): rng.choice(ODD)}
        return {**value, key: mutate(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], mutate(rng, value[index]), *value[index + 1 :]]
    return rng.choice(ODD)


def scramble(rng: random.Random, raw: bytes) -> bytes:
    """A copy with bytes changed, cut or doubled."""
    at, action = rng.randrange(len(raw) + 1), rng.random()
    if action < 0.4:
        return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    return raw[:at] if action < 0.7 else raw[:at] + raw[at // 2 :]


def frames(seed: int, count: int) -> Any:
    rng = random.Random(seed)
    for _ in range(count):
        value = rng.choice(SEEDS)
        for _ in range(rng.randrange(1, 4)):
            value = mutate(rng, value)
        raw = msgspec.json.encode(value)
        yield scramble(rng, raw) if rng.random() < 0.4 else raw


def _create(raw: bytes, model: str) -> None:
    made = Create(parse(raw), model, HTTP_FIELDS)
    made.command(made.messages)


def check(raw: bytes) -> None:
    for protocol in (ChatCompletion, Completion, _create):
        try:
            protocol(raw, "m")
        except RequestError as exc:
            refused = refusal(exc)
            assert 400 <= refused.status < 500 and refused.message
            msgspec.json.decode(refused.body())
    ids = itertools.count()
    session = ResponsesSession("m", lambda parent: (), new_id=lambda: f"resp_{next(ids)}")
    for action in session.receive(raw):
        if isinstance(action, bytes):
            frame = msgspec.json.decode(action)
            assert frame["type"] != "error" or 400 <= frame["status"] < 500


@pytest.mark.parametrize("seed", range(10))
def test_mutated_frames(seed: int) -> None:
    for raw in frames(seed, 1000):
        check(raw)


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
def test_broken_frames(raw: bytes) -> None:
    check(raw)
    with pytest.raises(RequestError):
        ChatCompletion(raw, "m")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_python_calls_json_is_refused_naming_the_field(number: str) -> None:
    with pytest.raises(RequestError, match="temperature: expected a finite number") as refused:
        Completion(b'{"prompt": "x", "temperature": %s}' % number.encode(), "m")
    assert refused.value.field == "temperature"
