"""Five thousand requests of all kinds, each of another user, chat, salt and id: nothing that the server holds has grown
by any of them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from jitney.runtime import queue
from jitney.runtime.testing import Reply
from jitney.streaming import registry

MOST = 64
"""Entries of any one container when all is over."""
CONFIG = {"keep_finished_s": 0.001, "max_rows": 8, "kv_cache_bytes": 40 * 16, "max_context": 256}


def containers(root: object) -> Iterator[tuple[str, int]]:
    """Each list, dict, set and deque that our objects hold, however deep, and its length."""
    seen: set[int] = set()
    todo: list[tuple[str, object]] = [("", root)]
    while todo:
        at, held = todo.pop()
        if id(held) in seen:
            continue
        seen.add(id(held))
        if isinstance(held, dict | list | tuple | set | frozenset | deque):
            yield at, len(held)
            inner = [*held.keys(), *held.values()] if isinstance(held, dict) else list(held)
            todo += [(f"{at}[]", one) for one in inner]
        elif type(held).__module__.startswith(("jitney.", "starlette.")):
            todo += [(f"{at}.{name}", value) for name, value in attributes(held)]
        elif callable(held) and hasattr(held, "__self__"):
            todo.append((at, held.__self__))


def attributes(held: object) -> Iterator[tuple[str, object]]:
    yield from getattr(held, "__dict__", {}).items()
    for kind in type(held).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(held, name):
                yield name, getattr(held, name)


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "sky"}], **fields}


HTTP: list[Callable[[int], tuple[str, str, dict[str, Any]]]] = [
    lambda n: ("POST", "/v1/chat/completions", chat(user=f"u{n}", cache_salt=f"s{n}")),
    lambda n: ("POST", "/v1/chat/completions", chat(stream=True, deadline_ms=60_000 + n)),
    lambda n: ("POST", "/v1/chat/completions", chat(n=2, logprobs=True, priority=n % 100)),
    lambda n: ("POST", "/v1/chat/completions", chat(temperature=-1)),
    lambda n: ("POST", "/v1/chat/completions", chat(deadline_ms=0.001)),
    lambda n: ("POST", "/v1/completions", {"prompt": ["sky", "blue"], "echo": True, "logprobs": 1}),
    lambda n: ("POST", "/v1/completions", {"prompt": "broken", "stream": True}),
    lambda n: ("POST", "/v1/completions", {"prompt": "x" * 300}),
    lambda n: ("POST", "/v1/responses", {"input": "sky", "metadata": {"n": str(n)}}),
    lambda n: ("POST", "/v1/responses", {"input": "sky", "stream": True, "top_logprobs": 1}),
    lambda n: ("POST", "/v1/responses", {"input": "sky", "background": True}),
    lambda n: ("POST", "/v1/responses", {"input": "sky", "previous_response_id": f"resp_{n}"}),
    lambda n: ("GET", f"/v1/responses/resp_{n}", {}),
    lambda n: ("DELETE", f"/v1/responses/resp_{n}", {}),
    lambda n: ("POST", f"/v1/responses/resp_{n}/cancel", {}),
    lambda n: ("GET", f"/nowhere/{n}", {}),
    lambda n: ("PUT", "/api", {"prompts": ["sky", "blue"], "tokens_to_generate": 3}),
    lambda n: ("POST", "/completions", {"prompt": "sky", "max_tokens": 3}),
    lambda n: ("POST", "/v1/tokenize", {"prompt": f"sky {n}"}),
    lambda n: ("GET", "/metrics", {}),
]


async def ask(client: httpx.AsyncClient, n: int) -> None:
    method, path, body = HTTP[n % len(HTTP)](n)
    headers = {"jitney-user": f"user-{n}", "origin": client.base_url.copy_with(raw_path=b"").__str__()}
    answer = await client.request(method, path, json=body or None, headers=headers)
    assert answer.status_code < 500 or "broken" in str(body) or answer.status_code == 504, answer.text


FRAMES: list[Callable[[int], dict[str, Any]]] = [
    lambda n: {"input": "sky", "stream_id": f"lane{n % 30}", "user": f"u{n}"},
    lambda n: {"input": "sky", "generate": False, "cache_salt": f"s{n}"},
    lambda n: {"input": "sky", "previous_response_id": f"resp_{n}"},
    lambda n: {"input": "broken", "stream_id": f"lane{n % 30}"},
    lambda n: {"input": "sky", "stream_id": f"other{n}", "temperature": -1},
    lambda n: {"type": "response.cancel", "response_id": f"resp_{n}"},
    lambda n: {"type": "jitney:response.resume", "response_id": f"resp_{n}"},
    lambda n: {"type": "response.steer", "previous_response_id": f"resp_{n}", "input": "x"},
    lambda n: {"type": "nonsense", "stream_id": f"other{n}"},
]
ENDS = {"response.completed", "response.incomplete", "response.failed", "response.steer.failed", "error"}


async def talk(socket: ClientConnection, numbers: range) -> None:
    """One at a time: each frame has one last answer."""
    for n in numbers:
        await socket.send(json.dumps({"type": "response.create", **FRAMES[n % len(FRAMES)](n)}))
        while json.loads(await socket.recv())["type"] not in ENDS:
            pass


async def converse(socket: ClientConnection, numbers: range) -> None:
    for n in numbers:
        message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "sky"}]}
        wanted = {"trigger": "submit-message", "messages": [message]}
        frame = {"type": "send", **wanted} if n % 3 else {"type": "resume"}
        await socket.send(json.dumps({**frame, "requestId": f"r{n}", "id": f"chat{n - n % 2}"}))
        while json.loads(await socket.recv())["type"] not in ("end", "error", "no-active"):
            pass


async def leave(url: str, count: int) -> None:
    """In the middle of an answer, under each policy."""
    for n in range(count):
        policy: dict[str, Any] = {"on_disconnect": ("cancel", "finish", "detach")[n % 3]}
        if n % 3 == 2:
            policy["detach_ttl_s"] = 0.01
        async with connect(f"{url}/v1/responses", proxy=None) as socket:
            create = {"type": "response.create", "input": "long", "jitney": policy}
            await socket.send(json.dumps(create))
            await socket.recv()
            socket.transport.abort()


def left(service: Any) -> list[Any]:
    """Answers that are known of, and what has still to begin."""
    entries = [vars(entry) for entry in service.registry._entries.values()]
    return [*entries, *service.ledger._open, *service._tasks]


async def test_nothing_grows(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_REMEMBERED", 8)
    monkeypatch.setattr(queue, "IDLE_USERS", 8)
    long = Reply(match="long", text="tick " * 10, token_s=0.001)
    async with serving(long, config=CONFIG) as served:
        url = served.url.replace("http", "ws")
        limits = httpx.Limits(max_connections=8)
        async with httpx.AsyncClient(
            base_url=served.url, trust_env=False, limits=limits, timeout=60
        ) as client:
            for first in range(0, 1600, 8):
                await asyncio.gather(*(ask(client, n) for n in range(first, first + 8)))
        for start in range(0, 2400, 1200):
            async with connect(f"{url}/v1/responses", proxy=None) as socket:
                await talk(socket, range(start, start + 1200))
        async with connect(f"{url}/v1/chat/ws", proxy=None) as socket:
            await converse(socket, range(900))
        await leave(url, 100)
        await served.until(lambda stats: stats.running == stats.waiting == 0)
        await served.until(lambda stats: stats.kept_responses == 0)
        service = served.app.state.service
        with anyio.move_on_after(60):
            while left(service):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert left(service) == []
        held = list(containers((served.app, served.engine)))
        assert len(held) > 100
        assert {at: size for at, size in held if size > MOST} == {}
