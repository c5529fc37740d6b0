"""Keys at a running server: limits at the wire, tickets, shares and salts, revocation while sockets are open."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from jitney.streaming.access.keys import digest_of
from jitney.streaming.client import Client

CHAT = "/v1/chat/completions"
SKY = {"messages": [{"role": "user", "content": "sky"}]}
SLOW = {"messages": [{"role": "user", "content": "slow"}]}


def write(path: Path, **keys: dict[str, Any]) -> Path:
    before = path.stat().st_mtime_ns if path.exists() else 0
    lines = []
    for name, fields in keys.items():
        lines += ["[[key]]", f'name = "{name}"', f'sha256 = "{digest_of(name + "-secret")}"']
        lines += [f"{field} = {json.dumps(value)}" for field, value in fields.items()]
    path.write_text("\n".join([*lines, ""]))
    os.utime(path, ns=(before + 10**9, before + 10**9))
    return path


def http(served: Any, key: str, **headers: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}-secret", **headers}
    return httpx.AsyncClient(base_url=served.url, headers=headers, trust_env=False, timeout=60)


def socket(served: Any, key: str | None = None, query: str = "", **headers: str) -> Any:
    given = {} if key is None else {"authorization": f"Bearer {key}-secret"}
    url = served.url.replace("http", "ws") + "/v1/responses" + query
    return connect(url, additional_headers={**given, **headers}, proxy=None)


async def test_a_revoked_key_loses_its_sockets_and_comes_in_no_more(serving: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", a={}, b={})
    async with serving(keys_file=path) as served:
        async with socket(served, "a") as gone, socket(served, "b") as stays:
            await gone.send(json.dumps({"type": "response.create", "input": "slow"}))
            await gone.recv()
            write(path, b={})
            with pytest.raises(ConnectionClosed):
                while True:
                    await asyncio.wait_for(gone.recv(), 60)
            assert gone.close_code == 1008 and gone.close_reason == "the key was revoked"
            await stays.send(json.dumps({"type": "response.create", "input": "sky"}))
            assert json.loads(await stays.recv())["type"] == "response.created"
        async with http(served, "a") as client:
            assert (await client.get("/v1/models")).status_code == 401


async def test_limits_change_without_a_restart(serving: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", a={"concurrency": 1})
    async with serving(keys_file=path) as served, http(served, "a") as client:
        slow = asyncio.create_task(client.post(CHAT, json=SLOW))
        await served.until(lambda stats: stats.running == 1)
        refused = await client.post(CHAT, json=SKY)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "'a' may have 1 answers open" in refused.json()["error"]["message"]
        write(path, a={"concurrency": 2})
        async with asyncio.timeout(60):
            while (await client.post(CHAT, json=SKY)).status_code != 200:
                pass
        slow.cancel()
        await asyncio.wait({slow})
        await served.until_idle()
        assert (await client.post(CHAT, json=SKY)).status_code == 200


async def test_tokens_a_minute(serving: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", a={"tokens_per_minute": 10}, b={})
    async with serving(keys_file=path) as served, http(served, "a") as client, http(served, "b") as other:
        assert (await client.post(CHAT, json=SKY)).status_code == 200
        refused = await client.post(CHAT, json=SKY)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 10
        assert (await other.post(CHAT, json=SKY)).status_code == 200


async def test_a_keys_highest_priority_and_longest_deadline(serving: Any, tmp_path: Path) -> None:
    hurried = {"longest_deadline_s": 0.2}
    path = write(tmp_path / "keys.toml", a={"highest_priority": 0, "longest_deadline_s": 100}, b=hurried)
    async with serving(keys_file=path) as served, http(served, "a") as client, http(served, "b") as late:
        for field, value, status in (
            ("priority", -1, 400),
            ("priority", 0, 200),
            ("deadline_ms", 100_001, 400),
            ("deadline_ms", 100_000, 200),
        ):
            answer = await client.post(CHAT, json={**SKY, field: value})
            assert answer.status_code == status
            if status == 400:
                error = answer.json()["error"]
                assert error["param"] == field and error["message"].startswith(f"{field}: ")
        assert (await late.post(CHAT, json=SLOW)).status_code == 504


async def test_so_many_sockets(serving: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", a={"connections": 1})
    async with serving(keys_file=path) as served:
        async with socket(served, "a"):
            with pytest.raises(InvalidStatus) as refused:
                async with socket(served, "a"):
                    pass
            assert refused.value.response.status_code == 429
            assert int(refused.value.response.headers["retry-after"]) >= 1
        async with asyncio.timeout(60):
            while True:
                try:
                    async with socket(served, "a"):
                        break
                except InvalidStatus:
                    await asyncio.sleep(0.01)


async def test_so_many_requests_and_health_all_the_same(serving: Any) -> None:
    async with serving(max_requests=1) as served, http(served, "") as client:
        slow = asyncio.create_task(client.post(CHAT, json=SLOW))
        await served.until(lambda stats: stats.running == 1)
        refused = await client.get("/v1/models")
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert (await client.get("/ready")).status_code == 200
        slow.cancel()
        await asyncio.wait({slow})


async def test_a_ticket_opens_a_socket_for_a_user_of_a_page(
    serving: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    page = "https://app.example"
    path = write(tmp_path / "keys.toml", a={})
    async with serving(keys_file=path, allow_origins=[page]) as served, http(served, "a") as client:
        order = {"user": "ann", "instructions": "Speak like a pirate.", "origin": page}
        sold = (await client.post("/v1/ws-tickets", json=order)).json()
        assert sold["expires_in_s"] == 30 and sold["origin"] == page
        query = f"?ticket={sold['ticket']}"
        async with socket(served, query=query, origin=page) as ws:
            await ws.send(json.dumps({"type": "response.create", "input": "sky"}))
            assert json.loads(await ws.recv())["type"] == "response.created"
        with pytest.raises(InvalidStatus) as refused:
            async with socket(served, query=query, origin=page):
                pass
        assert refused.value.response.status_code == 401
        other = await client.post("/v1/ws-tickets", json={"origin": "https://evil.example"})
        assert other.status_code == 403 and "--allow-origin" in other.json()["error"]["message"]
        told = "".join(record.getMessage() for record in caplog.records if record.name.startswith("jitney"))
        assert sold["ticket"] not in told and "pirate" not in told


@pytest.mark.parametrize("route", ["/v1/ws-tickets", "/v1/chat/completions", "/v1/responses"])
async def test_a_ticket_is_no_key(route: str, serving: Any, tmp_path: Path) -> None:
    """Else a page would buy itself a ticket without the instructions that its own came with, and so on for ever."""
    path = write(tmp_path / "keys.toml", a={})
    async with serving(keys_file=path) as served, http(served, "a") as client:
        sold = (await client.post("/v1/ws-tickets", json={"instructions": "Speak like a pirate."})).json()
        bearer = {"authorization": f"Bearer {sold['ticket']}"}
        refused = await client.post(route, json={}, headers=bearer)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        async with socket(served, query=f"?ticket={sold['ticket']}"):
            pass  # it is still good for what it was bought for


@pytest.mark.parametrize(
    ("order", "status"),
    [
        ({"user": "u" * 128}, 200),
        ({"user": "u" * 129}, 400),
        ({"user": "u" * 128_000}, 400),
        ({"instructions": "i" * 16_384}, 200),
        ({"instructions": "i" * 16_385}, 400),
        ({"user": 5}, 400),
        ({"origin": "app.example"}, 400),
        ({"origin": "null"}, 400),
        ({"wibble": 1}, 400),
        ({}, 200),
    ],
)
async def test_what_a_ticket_may_say(order: Any, status: int, serving: Any) -> None:
    async with serving() as served, http(served, "") as client:
        assert (await client.post("/v1/ws-tickets", json=order)).status_code == status


async def test_shares_and_cached_prefixes_go_by_key_and_user(serving: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", a={"trusted": True}, b={}, c={"trusted": True, "salt_by_user": True})
    prompt = {"prompt": "sky " * 100, "max_tokens": 1}

    async def cached(key: str, body: dict[str, Any] | None = None, **headers: str) -> int:
        async with http(served, key, **headers) as client:
            answer = (await client.post("/v1/completions", json={**prompt, **(body or {})})).json()
            return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    async with serving(keys_file=path) as served:
        assert await cached("a") == 0
        assert await cached("a") > 0
        assert await cached("a", **{"jitney-user": "ann"}) > 0
        assert await cached("b") == 0
        assert await cached("b", {"user": "ann"}) > 0
        assert await cached("b", {"cache_salt": "other"}) == 0
        assert await cached("c", **{"jitney-user": "ann"}) == 0
        assert await cached("c", **{"jitney-user": "bob"}) == 0
        assert await cached("c", **{"jitney-user": "bob"}) > 0


async def test_the_python_client_comes_in_with_a_key(serving: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", a={})
    async with serving(keys_file=path) as served, Client(served.url, api_key="a-secret") as client:
        assert "".join([event.text async for event in client.stream("sky")]) == "Rayleigh scattering."


async def test_an_answer_belongs_to_its_key_and_user(serving: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", a={"trusted": True}, b={"trusted": True})
    async with serving(keys_file=path) as served:
        async with http(served, "a", **{"jitney-user": "ann"}) as ann:
            made = (await ann.post("/v1/responses", json={"input": "sky"})).json()
            one = f"/v1/responses/{made['id']}"
            others: list[tuple[str, dict[str, str]]] = [
                ("a", {}),
                ("a", {"jitney-user": "bob"}),
                ("b", {"jitney-user": "ann"}),
                ("b", {}),
            ]
            for key, headers in others:
                async with http(served, key, **headers) as other:
                    for method, url in (("GET", one), ("POST", f"{one}/cancel"), ("DELETE", one)):
                        answer = await other.request(method, url)
                        assert answer.status_code == 404, (key, headers, method)
                    again = {"input": "sky", "previous_response_id": made["id"]}
                    assert (await other.post("/v1/responses", json=again)).status_code == 400
            assert (await ann.get(one)).json()["id"] == made["id"]
            assert (await ann.delete(one)).status_code == 200
