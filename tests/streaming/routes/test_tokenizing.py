"""Tokens of a text or of messages, and back; bounded, and off the loop."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from jitney.runtime.testing import ByteTokenizer


def http(served: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.url, timeout=60)


async def test_there_and_back(serving: Any) -> None:
    async with serving() as served, http(served) as client:
        text = "Ünïcode 😀\n"
        there = (await client.post("/v1/tokenize", json={"prompt": text, "return_token_strs": True})).json()
        assert there["count"] == len(there["tokens"]) == len(text.encode())
        assert there["max_model_len"] == 8192 and there["token_strs"][2] == "n"
        back = await client.post("/v1/detokenize", json={"tokens": there["tokens"]})
        assert back.json() == {"prompt": text}


async def test_messages_go_through_the_template(serving: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    async with serving() as served, http(served) as client:
        answer = await client.post("/v1/tokenize", json={"messages": messages})
        assert answer.json()["tokens"] == list(ByteTokenizer().encode_chat(messages))
        assert (await client.post("/v1/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("tokenize", {"prompt": 5}, "prompt"),
        ("tokenize", {"messages": []}, "messages"),
        ("tokenize", {"prompt": "x", "add_special_tokens": 1}, "add_special_tokens"),
        ("tokenize", {"prompt": "x", "add_generation_prompt": False}, "add_generation_prompt"),
        ("tokenize", {"prompt": "x", "wibble": 1}, "wibble"),
        ("tokenize", {"prompt": "x" * 100_000}, "prompt"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": "x"}, "tokens"),
        ("detokenize", {"tokens": [True]}, "tokens[0]"),
        ("detokenize", {"tokens": [-1]}, "tokens"),
        ("detokenize", {"tokens": [10**30]}, "tokens"),
        ("detokenize", {"tokens": [5000]}, "tokens"),
        ("detokenize", {"tokens": [65] * 8193}, "tokens"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(route: str, body: Any, param: str, serving: Any) -> None:
    async with serving() as served, http(served) as client:
        answer = await client.post(f"/v1/{route}", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param


async def test_so_many_wait_and_no_more(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.streaming.routes.tokenizing.MAX_WAITING", 0)
    async with serving() as served, http(served) as client:
        answer = await client.post("/v1/tokenize", json={"prompt": "x"})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
