"""`docs/nginx.conf` in a real nginx, where there is one: sockets, streams as they are made, no query logged."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
SNIPPET = Path(__file__).parents[2] / "docs" / "nginx.conf"

pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx here")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@asynccontextmanager
async def nginx(upstream: str, folder: Path) -> AsyncIterator[str]:
    """The snippet before `upstream`, without TLS and with its files in `folder`."""
    port = free_port()
    text = SNIPPET.read_text().replace("127.0.0.1:8000", upstream.removeprefix("http://"))
    text = text.replace("/var/log/nginx/", f"{folder}/").replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    text = re.sub(r"\n *ssl_\w+.*", "", text)
    temporary = "".join(f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy"))
    unused = "".join(f"{name}_temp_path {folder}/{name};" for name in ("fastcgi", "uwsgi", "scgi"))
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ {temporary} {unused}\n{text}\n}}\n"
    )
    assert NGINX is not None
    process = await asyncio.create_subprocess_exec(NGINX, "-e", f"{folder}/start.log", "-c", str(config))
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def test_the_snippet(serving: Any, tmp_path: Path) -> None:
    async with serving(api_key="secret") as served, nginx(served.url, tmp_path) as url:
        headers = {"authorization": "Bearer secret"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
            assert (await client.get("/v1/models?token=leaked")).status_code == 200
            assert (await client.get("/metrics")).status_code == 404
            body = {"prompt": "slow", "stream": True, "max_tokens": 400}
            arrivals = []
            async with client.stream("POST", "/v1/completions", json=body) as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                async for _ in stream.aiter_raw():
                    arrivals.append(asyncio.get_running_loop().time())
            assert len(arrivals) > 20 and arrivals[-1] - arrivals[0] > 0.5
        socket_url = url.replace("http", "ws") + "/v1/responses?ticket=leaked"
        async with connect(socket_url, additional_headers={**headers, "origin": url}, proxy=None) as ws:
            await ws.send(json.dumps({"type": "response.create", "input": "sky"}))
            kinds = []
            while not kinds or kinds[-1] != "response.completed":
                kinds.append(json.loads(await ws.recv())["type"])
            assert "response.output_text.delta" in kinds
        await served.until_idle()
    logged = (tmp_path / "jitney.log").read_text()
    assert "/v1/models" in logged and "leaked" not in logged
