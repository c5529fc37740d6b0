"""Megatron's routes over a real server: what a client of its server gets here."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from jitney.runtime.testing import Reply

LINES = Reply(match="lines", text="one\ntwo\n\nthree")


def http(served: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=60)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "one\ntwo\n\nthree"),
        ({"tokens_to_generate": 5}, "one\nt"),
        ({"stop_on_eol": True}, "one\n"),
        ({"stop_on_double_eol": True}, "one\ntwo\n\n"),
        ({"stop_token": ord("w")}, "one\ntw"),
        ({"top_p": 0.9, "top_p_decay": 0.5, "top_p_bound": 0.1, "random_seed": 7}, "one\ntwo\n\nthree"),
        ({"prevent_newline_after_colon": True, "length_penalty": 1}, "one\ntwo\n\nthree"),
    ],
)
async def test_put_api(serving: Any, fields: Any, text: str) -> None:
    async with serving(LINES) as served, http(served) as client:
        answer = await client.put("/api", json={"prompts": ["lines"], **fields})
        assert answer.status_code == 200 and answer.json()["text"] == ["lines" + text]
        assert "".join(answer.json()["segments"][0]).startswith("lines" + text)
        await served.until_idle()


async def test_a_stop_token_is_in_the_text_as_it_is_in_the_tokens(serving: Any) -> None:
    async with serving(LINES) as served, http(served) as client:
        answer = (await client.put("/api", json={"prompts": ["lines"], "stop_token": ord("w")})).json()
        (text,), (segments,), (tokens,) = answer["text"], answer["segments"], answer["tokens"]
        assert text == "".join(segments) == bytes(tokens).decode() == "linesone\ntw"


async def test_several_prompts_and_their_scores(serving: Any) -> None:
    async with serving(LINES) as served, http(served) as client:
        body = {"prompts": ["sky", "lines"], "tokens_to_generate": 2, "logprobs": True}
        answer = (await client.put("/api", json=body)).json()
        assert answer["text"] == ["skyRa", "lineson"] and answer["tokens"][0] == list(b"skyRa")
        assert [len(scores) for scores in answer["logprobs"]] == [4, 6]
        scored = await client.put("/api", json={**body, "tokens_to_generate": 0})
        assert scored.json()["text"] == ["sky", "lines"] and len(scored.json()["logprobs"][1]) == 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompts"),
        ({"prompts": ["x"], "stop_token": 5000}, "stop_token"),
        ({"prompts": ["x"], "tokens_to_generate": 10_000}, "tokens_to_generate"),
        ({"prompts": ["x" * 200_000]}, "prompts"),
        ({"prompts": ["x"], "beam_width": 4}, "beam_width"),
    ],
)
async def test_an_error_is_never_a_200(serving: Any, body: Any, param: str) -> None:
    async with serving() as served, http(served) as client:
        answer = await client.put("/api", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
        assert (await client.post("/api", json=body)).status_code == 405


async def test_the_legacy_completions(serving: Any) -> None:
    async with serving(LINES) as served, http(served) as client:
        answer = await client.post("/completions", json={"prompt": "lines", "max_tokens": 3, "echo": True})
        assert answer.json()["choices"][0]["text"] == "linesone"
        body = {"prompt": [list(b"sky"), list(b"lines")], "max_tokens": 0, "echo": True, "logprobs": 2}
        scored = (await client.post("/completions", json=body)).json()
        assert [choice["text"] for choice in scored["choices"]] == ["sky", "lines"]
        columns = scored["choices"][1]["logprobs"]
        assert columns["tokens"] == list("lines") and columns["token_logprobs"][0] is None
        assert len(columns["token_logprobs"]) == 5 and scored["usage"]["completion_tokens"] == 0
        refused = await client.post("/completions", json={"prompt": "x", "max_tokens": 0})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "echo"
