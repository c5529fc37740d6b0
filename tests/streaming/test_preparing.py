"""Instructions and `prepare`, on every route; and one answer followed from one transport to another."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect

from jitney.runtime.errors import InvalidField, RequestError
from jitney.runtime.params import SamplingParams
from jitney.streaming.preparing import instructed, prepared
from jitney.streaming.principal import ANONYMOUS, Principal
from jitney.streaming.protocols.generate import Generate

HELLO: Any = [{"role": "user", "content": "hello"}]


def request(prompt: Any) -> Generate:
    return Generate(prompt=prompt, params=SamplingParams(), spelled={"prompt": "input"})


def test_instructions_stand_first() -> None:
    given = instructed(request(HELLO), "be kind")
    assert given.prompt == [{"role": "system", "content": "be kind"}, *HELLO]


@pytest.mark.parametrize("prompt", ["hello", [1, 2], [], [{"role": "system", "content": "x"}, *HELLO]])
def test_what_would_go_round_them_is_refused_by_name(prompt: Any) -> None:
    with pytest.raises(RequestError, match="^input: ") as refused:
        instructed(request(prompt), "be kind")
    assert refused.value.field == "input"


async def test_prepare_has_the_last_word() -> None:
    seen: list[Any] = []

    async def prepare(generate: Generate, principal: Principal) -> Generate:
        seen.append((generate.prompt, principal.key))
        return msgspec.structs.replace(generate, priority=3)

    principal = Principal("k", instructions="be kind")
    assert (await prepared(request(HELLO), principal, prepare)).priority == 3
    assert seen == [([{"role": "system", "content": "be kind"}, *HELLO], "k")]
    assert await prepared(request("x"), ANONYMOUS, None) == request("x")


ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HELLO}),
    ("/v1/completions", {"prompt": "hello"}),
    ("/v1/responses", {"input": "hello"}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_host_refuses_on_every_route(serving: Any, path: str, body: dict[str, Any]) -> None:
    def prepare(generate: Generate, principal: Principal) -> Generate:
        if generate.params.temperature == 2:
            raise InvalidField("temperature", "less heat in this house", 2)
        return msgspec.structs.replace(generate, prompt="sky")

    async with serving(prepare=prepare) as served, httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        answer = await http.post(path, json=body)
        assert answer.status_code == 200 and "Rayleigh" in answer.text
        refused = await http.post(path, json={**body, "temperature": 2})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "temperature"


async def dialled(served: Any, path: str, instructions: str) -> Any:
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        bought = await http.post(
            "/v1/ws-tickets",
            json={"instructions": instructions, "user": "ann"},
            headers={"authorization": "Bearer secret"},
        )
    url = served.url.replace("http", "ws") + f"{path}?ticket={bought.json()['ticket']}"
    return connect(url, proxy=None, close_timeout=0.1)


async def frames(socket: ClientConnection, *last: str) -> list[Any]:
    heard: list[Any] = []
    async with asyncio.timeout(60):
        while not heard or heard[-1]["type"] not in last:
            heard.append(json.loads(await socket.recv()))
    return heard


async def test_a_tickets_instructions_hold_on_both_sockets(serving: Any) -> None:
    """The scripted model answers the last user message; how long the prompt is shows what stood before it."""
    secret = "Never tell this. " * 10
    async with serving(api_key="secret") as served:
        async with await dialled(served, "/v1/responses", secret) as socket:
            await socket.send(json.dumps({"type": "response.create", "input": "hello"}))
            heard = await frames(socket, "response.completed")
            assert heard[-1]["response"]["usage"]["input_tokens"] > len(secret)
            assert "Never" not in json.dumps(heard)
            await socket.send(json.dumps({"type": "response.create", "input": "x", "instructions": "mine"}))
            refused = (await frames(socket, "error"))[-1]["error"]
            assert "the server instructs" in refused["message"]
        async with await dialled(served, "/v1/chat/ws", secret) as socket:
            await socket.send(json.dumps(chat("hello")))
            heard = await frames(socket, "end")
            about = heard[-2]["chunk"]["messageMetadata"]
            assert about["usage"]["inputTokens"] > len(secret) and "Never" not in json.dumps(heard)


def chat(text: str, request_id: str = "r") -> dict[str, Any]:
    messages = [{"id": "u", "role": "user", "parts": [{"type": "text", "text": text}]}]
    send = {"type": "send", "requestId": request_id, "id": "c", "trigger": "submit-message"}
    return {**send, "messages": messages, "headers": {}, "body": {}}


async def test_an_answer_of_a_chat_is_followed_cancelled_and_deleted_over_http(serving: Any) -> None:
    async with serving() as served, httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        url = served.url.replace("http", "ws") + "/v1/chat/ws"
        async with connect(url, proxy=None, close_timeout=0.1) as socket:
            await socket.send(json.dumps(chat("sky")))
            heard = await frames(socket, "end")
            name = heard[0]["chunk"]["messageMetadata"]["responseId"]
            whole = (await http.get(f"/v1/responses/{name}")).json()
            assert whole["status"] == "completed"
            assert whole["output"][0]["content"][0]["text"] == "Rayleigh scattering."
            replay = (await http.get(f"/v1/responses/{name}", params={"stream": "true"})).text
            assert "response.completed" in replay and "Rayleigh" in replay
            assert (await http.delete(f"/v1/responses/{name}")).status_code == 200
            resume = {"type": "resume", "requestId": "r2", "id": "c", "headers": {}, "body": {}}
            await socket.send(json.dumps(resume))
            assert (await frames(socket, "no-active"))[-1]["requestId"] == "r2"
            await socket.send(json.dumps(chat("slow", "r3")))
            started = (await frames(socket, "chunk"))[-1]["chunk"]["messageMetadata"]["responseId"]
            assert (await http.post(f"/v1/responses/{started}/cancel")).status_code == 200
            assert (await frames(socket, "end"))[-2]["chunk"]["type"] == "abort"
        await served.until_idle()
