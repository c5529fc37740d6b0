"""The HTTP routes over a real server: statuses, shapes, limits, who may come in, and what a disconnect does."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from jitney.runtime import DynamicEngine
from jitney.runtime.errors import InvalidField
from jitney.runtime.testing import Reply, Script, ScriptedBackend
from jitney.streaming import create_app

CHAT = "/v1/chat/completions"
SKY = {"messages": [{"role": "user", "content": "sky"}]}
SLOW = {"messages": [{"role": "user", "content": "slow"}]}


def http(served: Any, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.url, headers=headers, trust_env=False, timeout=60)


async def test_errors_have_openais_shape(serving: Any) -> None:
    async with serving(max_body_bytes=2000) as served, http(served) as client:
        cases: list[tuple[Any, int, str | None, str]] = [
            (b"{", 400, "body", "invalid_value"),
            (b"[]", 400, "body", "invalid_value"),
            (json.dumps({**SKY, "wibble": 1}).encode(), 400, "wibble", "invalid_value"),
            (
                json.dumps({**SKY, "max_completion_tokens": 9000}).encode(),
                400,
                "max_completion_tokens",
                "context_length_exceeded",
            ),
            (json.dumps({**SKY, "stop_token_ids": [5000]}).encode(), 400, "stop_token_ids", "invalid_value"),
            (json.dumps({**SKY, "priority": 1000}).encode(), 400, "priority", "invalid_value"),
            (json.dumps({**SKY, "deadline_ms": 1e13}).encode(), 400, "deadline_ms", "invalid_value"),
            (json.dumps({**SKY, "model": "x"}).encode(), 404, "model", "model_not_found"),
            (b" " * 2001, 413, None, "request_too_large"),
        ]
        for body, status, param, code in cases:
            answer = await client.post(CHAT, content=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
            assert (
                set(error) == {"message", "type", "param", "code"}
                and error["type"] == "invalid_request_error"
            )
        assert (await client.post(CHAT, content=json.dumps(SKY).ljust(2000))).status_code == 200
        assert (await client.get("/nothing")).json()["error"]["code"] == "unknown_url"
        for path in ("/v1/responses", "/v1/chat/ws"):
            plain = await client.get(path)
            assert plain.status_code == 426 and plain.headers["upgrade"] == "websocket"
            assert plain.json()["error"]["code"] == "upgrade_required"
        wrong_verb = await client.get(CHAT)
        assert wrong_verb.status_code == 405 and wrong_verb.headers["allow"] == "POST"
        await served.until_idle()


async def test_who_sends_all_before_listening_hears_that_it_is_too_much(serving: Any) -> None:
    def send(url: str) -> int:
        asked = urllib.request.Request(f"{url}{CHAT}", b" " * 20_000_000)
        try:
            with urllib.request.urlopen(asked) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                assert json.load(error)["error"]["code"] == "request_too_large"
                return error.code

    async with serving(max_body_bytes=5000) as served:
        assert await asyncio.to_thread(send, served.url) == 413


async def test_a_body_without_a_length_is_limited_too(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.streaming.http.LINGER_BYTES", 20_000)

    async def endless() -> Any:
        while True:
            yield b" " * 1000

    async with serving(max_body_bytes=5000) as served, http(served) as client:
        try:
            answer = await client.post(CHAT, content=endless())
            assert answer.status_code == 413
        except (httpx.WriteError, httpx.ReadError):
            pass  # the server hung up before the client had read its answer
        assert (await client.get("/live")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_cancels(serving: Any, stream: bool) -> None:
    async with serving() as served:
        for _ in range(3):
            async with http(served) as client:
                request = asyncio.create_task(client.post(CHAT, json={**SLOW, "stream": stream, "n": 2}))
                await served.until(lambda stats: stats.running == 2)
                request.cancel()
                await asyncio.wait({request})
            await served.until_idle()
        assert served.engine.stats().finished == {"cancelled": 6}


async def test_a_disconnect_while_waiting_for_a_seat_cancels(serving: Any) -> None:
    async with serving(config={"max_rows": 1}) as served, http(served) as client:
        posts = [asyncio.create_task(client.post(CHAT, json=SLOW)) for _ in range(4)]
        await served.until(lambda stats: stats.running == 1 and stats.waiting == 3)
        for post in posts:
            post.cancel()
        await asyncio.wait(posts)
        await served.until_idle()


async def test_one_refused_prompt_of_many_cancels_the_others(serving: Any) -> None:
    async with serving() as served, http(served) as client:
        answer = await client.post("/v1/completions", json={"prompt": ["slow", "slow", [5000]]})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt"
        await served.until_idle()


async def test_a_full_queue_is_429_and_a_draining_engine_503(serving: Any) -> None:
    async with serving(config={"max_rows": 1, "max_queued": 1}) as served, http(served) as client:
        posts = [asyncio.create_task(client.post(CHAT, json=SLOW)) for _ in range(5)]
        done, waiting = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert not await served.engine.drain(0.01)
        draining = await client.post(CHAT, json=SKY)
        assert draining.status_code == 503 and draining.json()["error"]["code"] == "engine_closed"
        assert (await client.get("/ready")).json()["status"] == "draining"
        for post in waiting:
            post.cancel()
        await asyncio.wait(waiting)


async def test_deadlines_end_as_errors(serving: Any) -> None:
    async with serving() as served, http(served) as client:
        plain = await client.post(CHAT, json={**SLOW, "deadline_ms": 40})
        assert plain.status_code == 504 and plain.json()["error"]["code"] == "deadline_exceeded"
        streamed = await client.post(CHAT, json={**SLOW, "deadline_ms": 40, "stream": True})
        last = streamed.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        await served.until_idle()


async def test_health(serving: Any) -> None:
    async with serving(Reply(match="die", fail_after=0, fault="worker")) as served, http(served) as client:
        assert (await client.get("/live")).json() == {"status": "live"}
        ready = await client.get("/ready")
        assert ready.status_code == 200 and ready.json()["status"] == "ready"
        failed = await client.post("/v1/completions", json={"prompt": "die"})
        assert failed.status_code == 500 and "died" in failed.json()["error"]["message"]
        ready = await client.get("/ready")
        assert ready.status_code == 503 and ready.json()["status"] == "dead"
        refused = await client.post("/v1/completions", json={"prompt": "sky"})
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_died"
        live = await client.get("/live")
        assert live.status_code == 503 and live.json() == {"status": "dead"}


async def test_a_step_that_hangs_is_not_ready() -> None:
    hang = threading.Event()
    backend = ScriptedBackend(Script(reply=[Reply(text="x", first_token_s=60)]), sleep=lambda s: hang.wait(5))
    async with DynamicEngine(backend) as engine:
        app = create_app(engine, stalled_s=0.05)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            response = await engine.submit("hi")
            while (ready := await client.get("/ready")).status_code == 200:
                pass
            assert ready.status_code == 503 and ready.json()["status"] == "stalled"
            hang.set()
            response.cancel()


async def test_an_engine_that_has_not_started_is_503_everywhere(serving: Any, serve_app: Any) -> None:
    async with serve_app(create_app(DynamicEngine(ScriptedBackend()))) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            assert (await client.post(CHAT, json=SKY)).status_code == 503
            assert (await client.get("/v1/models")).status_code == 503
            assert (await client.get("/v1/dashboard")).status_code == 503
            assert (await client.get("/ready")).status_code == 503


async def test_the_app_can_own_its_engine() -> None:
    engine = DynamicEngine(ScriptedBackend())
    app = create_app(engine, owns_engine=True)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            assert (await client.post("/v1/completions", json={"prompt": "hi"})).json()["choices"][0][
                "text"
            ] == "hi"
    assert engine.state == "closed"


KEY = {"authorization": "Bearer secret"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (KEY, 200),
        ({"authorization": "bearer secret"}, 200),
        ({"authorization": "Basic secret"}, 401),
        ({"authorization": "Bearer secre"}, 401),
        ({"authorization": "Bearer sécret"}, 401),
        ({"authorization": "secret"}, 401),
        ({**KEY, "origin": "https://evil.example"}, 403),
        ({**KEY, "origin": "http://localhost:3000"}, 200),
        ({**KEY, "host": "proxy.example", "origin": "http://proxy.example"}, 200),
        ({**KEY, "origin": "https://app.example"}, 200),
    ],
)
async def test_who_may_come_in_with_a_key(serving: Any, headers: Any, status: int) -> None:
    async with serving(api_key="secret", allow_origins=["https://app.example"]) as served:
        headers = {name: value.encode("utf-8") for name, value in headers.items()}
        async with http(served) as client:
            assert (await client.get("/v1/models", headers=headers)).status_code == status
            unknown = await client.get("/nothing", headers=headers)
            assert unknown.status_code == (404 if status == 200 else status)
            for path in ("/live", "/ready"):
                assert (await client.get(path, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[bad"}, 403),
        ({"origin": "http://127.0.0.1:9"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "allowed.example"}, 200),
    ],
)
async def test_who_may_come_in_without_a_key(serving: Any, headers: Any, status: int) -> None:
    async with serving(allow_hosts=["allowed.example"]) as served, http(served, **headers) as client:
        assert (await client.get("/v1/models")).status_code == status


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        ("2001:db8::5", "example.com", 200),
        ("10.0.0.5", "example.com", 200),
        ("::1", "example.com", 403),
        ("::1", "[::1]:8000", 200),
        ("127.0.0.2", "localhost:8000", 200),
    ],
)
async def test_hosts_are_checked_on_loopback_addresses_only(address: str, host: str, status: int) -> None:
    async with DynamicEngine(ScriptedBackend()) as engine:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/models",
            "query_string": b"",
            "server": (address, 80),
        }
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request"}

        await create_app(engine)({**scope, "headers": [(b"host", host.encode())]}, receive, send)
        assert sent[0]["status"] == status


def test_an_empty_key_is_a_mistake() -> None:
    with pytest.raises(InvalidField, match="api_key"):
        create_app(None, api_key="")  # type: ignore[arg-type]


async def test_five_hundred_mutated_bodies_over_the_wire(serving: Any) -> None:
    rng = random.Random(5)
    seeds = [
        json.dumps({**SKY, "n": 2, "stream": True, "max_tokens": 3}),
        json.dumps({"prompt": ["a", [1]], "echo": True}),
    ]
    async with serving(max_body_bytes=4000) as served, http(served) as client:
        for _ in range(500):
            raw = bytearray(rng.choice(seeds).encode())
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            answer = await client.post(rng.choice([CHAT, "/v1/completions"]), content=bytes(raw))
            assert answer.status_code < 500, (raw, answer.text)
        await served.until_idle()


def raw(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


UPGRADE = raw(
    "GET", "/v1/responses", b"", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)  # fmt: skip


@pytest.mark.parametrize(
    "behind",
    [raw("GET", "/health") * 20, raw("GET", "/health") + UPGRADE, UPGRADE],
    ids=["many", "both", "upgrade"],
)
async def test_who_sends_more_behind_a_request_and_leaves_still_cancels_its_answer(
    serving: Any, behind: bytes
) -> None:
    async with serving() as served:
        url = urlsplit(served.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(raw("POST", "/v1/chat/completions", json.dumps({**SLOW, "stream": True}).encode()))
        await reader.readuntil(b"data: ")
        writer.write(behind)
        if UPGRADE in behind:  # nothing takes the connection away from an answer
            await reader.read()
        else:
            await reader.readuntil(b"data: ")
            writer.transport.abort()
        await served.until(lambda stats: stats.finished.get("cancelled") == 1)
        await served.until_idle()
        writer.close()


async def test_an_upgrade_behind_an_answer_that_is_over_is_one(serving: Any) -> None:
    async with serving() as served:
        url = urlsplit(served.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(raw("GET", "/health"))
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADE)
        assert b"101 Switching" in await reader.readuntil(b"HTTP/1.1 101") + await reader.readline()
        writer.close()


async def exchanged(url: str, *parts: bytes) -> bytes:
    """What comes for bytes that are sent part by part, up to the connection's end."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("apart", [False, True])
async def test_an_offer_of_http_2_is_passed_over(serving: Any, apart: bool) -> None:
    body = json.dumps({"prompt": "sky h2c", "max_tokens": 2}).encode()
    offer = "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{offer}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with serving() as served:
        parts = (head.encode(), body) if apart else (head.encode() + body,)
        answer = await exchanged(served.url, *parts)
        assert answer.count(b"HTTP/1.1 ") == 1 and b" 200 OK" in answer and b"text_completion" in answer


GARBLED = {
    "a long line": (b"GET /v1/responses HTTP/1.1\r\nCookie: " + b"c" * 9000, 431),
    "a long address": (b"GET /v1/responses?" + b"a" * 9000 + b" HTTP/1.1", 431),
    "many lines": (b"GET /v1/responses HTTP/1.1\r\n" + b"\r\n".join([b"A: b"] * 200), 431),
    "another method": (b"POST /v1/responses HTTP/1.1", 400),
    "a body": (b"GET /v1/responses HTTP/1.1\r\nContent-Length: 2", 400),
}


@pytest.mark.parametrize("name", GARBLED)
async def test_a_handshake_that_cannot_be_read_is_refused_and_closed(
    serving: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    begin, status = GARBLED[name]
    rest = b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    async with serving() as served:
        sent = begin + b"\r\n" + rest + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        answer = await exchanged(served.url, sent)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and b"the WebSocket handshake: " in answer
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_who_leaves_in_the_middle_of_a_body_or_is_refused_a_socket_is_no_error(
    serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(api_key="secret") as served:
        at = urlsplit(served.url)
        head = "Host: localhost\r\nAuthorization: Bearer secret\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        for path in ("/v1/tokenize", "/v1/detokenize", "/v1/ws-tickets", "/v1/completions"):
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            writer.write(f"POST {path} HTTP/1.1\r\n{head}{{".encode())
            await reader.readuntil(b"100 Continue")
            writer.transport.abort()
        answer = await exchanged(served.url, UPGRADE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b" 401 " in answer
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text
