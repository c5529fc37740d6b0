"""Asks an ASGI app without a socket: one request or handshake, and the status that it gets."""

from __future__ import annotations

import asyncio
from typing import Any


async def status_of(
    app: Any,
    kind: str,
    method: str,
    path: str,
    headers: dict[str, str],
    *,
    server: tuple[str, int] = ("127.0.0.1", 80),
    query: str = "",
) -> tuple[int, dict[str, str]]:
    """`kind` is http or websocket. A handshake that is accepted has status 101; the client then leaves."""
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "server": server,
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "subprotocols": [
            p.strip() for p in headers.get("sec-websocket-protocol", "").split(",") if p.strip()
        ],
        "extensions": {"websocket.http.response": {}},
    }
    first: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    incoming = [{"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request"}]

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await first
        return {"type": f"{kind}.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        if not first.done():
            first.set_result(message)

    task = asyncio.create_task(app(scope, receive, send))
    await asyncio.wait({task, first}, return_when=asyncio.FIRST_COMPLETED)
    message = await first
    task.cancel()
    await asyncio.wait({task})
    answer = {name.decode(): value.decode() for name, value in message.get("headers", ())}
    if message["type"] == "websocket.accept":
        return 101, {**answer, "subprotocol": message.get("subprotocol") or ""}
    return message["status"], answer
