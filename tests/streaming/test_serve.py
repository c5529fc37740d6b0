"""Running on uvicorn: readiness, signals, the drain and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from jitney.runtime import DynamicEngine
from jitney.runtime.errors import ModelError
from jitney.runtime.testing import Reply, ScriptedBackend
from jitney.streaming import create_app
from jitney.streaming.client import Client
from jitney.streaming.serve import _listen, serve

SHORT = Reply(match="short", text="tick " * 20, token_s=0.005)


async def start(app: Any, **options: Any) -> tuple[asyncio.Task[None], str]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(serve(app, port=0, on_ready=ready.set_result, **options))
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    return running, ready.result()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def text_of(client: Client, prompt: str) -> str:
    return "".join([event.text async for event in client.stream(prompt)])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(serving: Any, number: int) -> None:
    former = signal.getsignal(number)
    async with serving(SHORT) as served:
        served.pace.hold(SHORT.token_s)
        running, url = await start(create_app(served.engine))
        async with Client(url) as client, httpx.AsyncClient(base_url=url, timeout=60) as http:
            open_answer = asyncio.create_task(text_of(client, "short"))
            body = {"prompt": "short", "stream": True, "max_tokens": 200}
            open_stream = asyncio.create_task(http.post("/v1/completions", json=body))
            await served.until(lambda stats: stats.running == 2)
            os.kill(os.getpid(), number)
            await served.until(lambda stats: stats.state == "draining")
            assert (await http.post("/v1/completions", json={"prompt": "sky"})).status_code == 503
            assert (await http.get("/ready")).status_code == 503
            served.pace.go()
            assert await open_answer == SHORT.text
            assert (await open_stream).text.endswith("data: [DONE]\n\n")
            await running
            await client._socket.wait_closed()
        assert client._socket.close_code == 1012
    assert signal.getsignal(number) is former


async def test_a_drain_serves_the_turns_that_were_told_to_wait(serving: Any) -> None:
    async with serving(SHORT) as served:
        served.pace.hold(SHORT.token_s)
        running, url = await start(create_app(served.engine))
        async with (
            connect(url.replace("http", "ws") + "/v1/responses", proxy=None) as ws,
            httpx.AsyncClient(base_url=url, timeout=60) as http,
        ):
            create = json.dumps({"type": "response.create", "input": "short"})
            frames: list[Any] = []
            for _ in range(3):
                await ws.send(create)
            while [frame["type"] for frame in frames].count("response.queued") < 2:
                frames.append(json.loads(await ws.recv()))
            os.kill(os.getpid(), signal.SIGTERM)
            while (await http.get("/ready")).json()["status"] != "draining":
                pass
            assert (await http.post("/v1/completions", json={"prompt": "sky"})).status_code == 503
            await ws.send(create)
            while frames[-1]["type"] != "error":
                frames.append(json.loads(await ws.recv()))
            served.pace.go()
            with pytest.raises(ConnectionClosed):
                while True:
                    frames.append(json.loads(await ws.recv()))
            refused = [frame for frame in frames if frame["type"] == "error"]
            assert [(frame["status"], frame["error"]["code"]) for frame in refused] == [
                (503, "engine_closed")
            ]
            ended = [frame["response"] for frame in frames if frame["type"] == "response.completed"]
            assert [whole["output"][0]["content"][0]["text"] for whole in ended] == [SHORT.text] * 3
            assert ws.close_code == 1012
            await running


async def test_what_does_not_end_in_time_is_closed_with_1012(serving: Any) -> None:
    async with serving() as served:
        running, url = await start(create_app(served.engine), drain_s=0.05)
        async with connect(url.replace("http", "ws") + "/v1/responses", proxy=None) as ws:
            await ws.send(json.dumps({"type": "response.create", "input": "slow"}))
            await ws.recv()
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                while True:
                    await ws.recv()
            assert ws.close_code == 1012
            await running
        await served.until_idle()


async def test_an_answer_that_the_server_cancels_may_be_asked_for_again(serving: Any) -> None:
    async with serving() as served:
        running, url = await start(create_app(served.engine), drain_s=0.05)
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            slow = asyncio.create_task(
                http.post("/v1/completions", json={"prompt": "slow", "max_tokens": 500})
            )
            await served.until(lambda stats: stats.running == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            reply = await slow
            assert reply.status_code == 503 and reply.headers["retry-after"]
            await running


async def test_a_second_signal_ends_the_wait(serving: Any) -> None:
    async with serving() as served:
        running, url = await start(create_app(served.engine), drain_s=600)
        async with Client(url) as client:
            slow = asyncio.create_task(text_of(client, "slow"))
            await served.until(lambda stats: stats.running == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            await served.until(lambda stats: stats.state == "draining")
            os.kill(os.getpid(), signal.SIGTERM)
            await running
            assert "tick tick tick".startswith((await slow)[:14]), "cut off, and told so"
        await served.until_idle()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/tokenize", "/v1/ws-tickets"])
async def test_a_body_that_is_not_there_yet_is_not_waited_for(
    serving: Any, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(SHORT) as served:
        running, url = await start(create_app(served.engine, api_key="key"))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        head = "Host: localhost\r\nAuthorization: Bearer key\r\nContent-Length: 100\r\nExpect: 100-continue"
        writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n\r\n".encode())
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")  # it is being read
        os.kill(os.getpid(), signal.SIGTERM)
        answer = await reader.read()
        assert b" 503 " in answer and b"the server is stopping" in answer and b"retry-after" in answer
        await running
        writer.close()
    assert "Cancelled" not in caplog.text


async def test_a_dashboards_feed_ends_with_the_server(serving: Any) -> None:
    async with serving(SHORT) as served:
        app = create_app(served.engine)
        running, url = await start(app)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(b"GET /v1/dashboard HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\n\n")
        await app.state.service.stop()
        assert (await reader.readuntil(b"\r\n0\r\n\r\n")).count(b"data: ") == 0
        writer.close()
        running.cancel()
        await asyncio.wait({running})


async def test_health_can_be_asked_while_it_starts(serving: Any) -> None:
    loading, asked = asyncio.Event(), asyncio.Event()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    engine = DynamicEngine(ScriptedBackend())
    port = free_port()

    async def start() -> None:
        loading.set()
        await asked.wait()
        await engine.start()

    running = asyncio.create_task(
        serve(create_app(engine), port=port, starting=start, on_ready=ready.set_result)
    )
    await loading.wait()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        assert (await client.get("/live")).status_code == 200
        assert (await client.get("/ready")).status_code == 503
        refused = await client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        asked.set()
        await ready
        assert (await client.get("/ready")).status_code == 200
        running.cancel()
        await asyncio.wait({running})
    await engine.close()


async def test_a_signal_while_it_starts_ends_it() -> None:
    loading = asyncio.Event()

    async def start() -> None:
        loading.set()
        await asyncio.Event().wait()

    app = create_app(DynamicEngine(ScriptedBackend()))
    running = asyncio.create_task(serve(app, port=0, starting=start))
    await loading.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 60)


async def test_a_start_that_fails_ends_it_with_its_error() -> None:
    async def start() -> None:
        raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        await serve(create_app(DynamicEngine(ScriptedBackend())), port=0, starting=start)


async def test_metrics_have_a_port_of_their_own(serving: Any) -> None:
    port = free_port()
    async with serving() as served:
        running, url = await start(create_app(served.engine, api_key="secret"), metrics_port=port)
        async with httpx.AsyncClient(timeout=60) as client:
            assert (await client.get(f"{url}/metrics")).status_code == 403
            own = f"http://127.0.0.1:{port}"
            assert "jitney_running" in (await client.get(f"{own}/metrics")).text
            assert (await client.get(f"{own}/v1/models")).status_code == 404
            foreign = await client.get(f"{own}/metrics", headers={"host": "evil.example"})
            assert foreign.status_code == 403
        running.cancel()
        await asyncio.wait({running})


async def test_a_host_program_keeps_its_signals_and_its_logging() -> None:
    def state() -> Any:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        loggers = [logging.getLogger(name) for name in (None, "jitney", "jitney.streaming", "uvicorn")]
        return (
            [signal.getsignal(number) for number in numbers],
            [(logger.level, list(logger.handlers)) for logger in loggers],
        )

    before = state()
    async with DynamicEngine(ScriptedBackend()) as engine:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as inside:
            assert (await inside.post("/v1/completions", json={"prompt": "x"})).status_code == 200
            assert state() == before


async def test_an_address_in_use_is_an_error(serving: Any) -> None:
    async with serving() as served:
        port = int(served.url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"):
            await serve(create_app(served.engine), port=port)


def test_the_listener_is_one_on_which_asyncio_sends_at_once() -> None:
    with _listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
