"""Many sockets that each get one token a step: what a message costs, and how long the loop is held.

    python benchmarks/fanout.py [--sockets 256] [--rate 50] [--seconds 10] [--servers jitney wire asgi websockets]

`jitney` is the whole: engine, responses, `/v1/responses`, on a step that only waits for its time. The others send one
ready-made text of 173 bytes to each socket: `wire` through `jitney.streaming.wire`, `asgi` through Starlette on
uvicorn, `websockets` on the library alone. Clients are a process of their own that reads and throws away. Prints, for
the server's loop thread, CPU per message, CPU of one turn of the loop (what a timer waits for at most where no other
program wants the core), and how late a timer of 5 ms fires; for `jitney` also the calls of `call_soon_threadsafe`
beside the steps, the writes to sockets (fewer than tokens where the loop lags), and how late the worker's thread is
back at work after a sleep: the system's own delay of a sleep, and the wait for the interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.server import serve as websockets_serve

from jitney.runtime import DynamicEngine, EngineConfig
from jitney.runtime.batch import Batch, Capacity, Decoded, Outcomes, RowOutcome
from jitney.runtime.testing import Script, ScriptedBackend
from jitney.streaming import create_app
from jitney.streaming.line import Outbox
from jitney.streaming.serve import serve
from jitney.streaming.wire import FrameProtocol, frame_sender

TEXT = json.dumps({"type": "response.output_text.delta", "item_id": "msg_" + "0" * 32, "delta": "a" * 83})
PROBE_S = 0.005


class PacedStep:
    """Gives every row one token, `rate` times a second."""

    def __init__(self, capacity: Capacity, rate: float) -> None:
        self.capacity = capacity
        self.lates: list[float] = []
        self._period_s = 1 / rate
        self._next = time.monotonic()

    def launch(self, batch: Batch) -> Any:
        return batch

    def collect(self, ticket: Any) -> Outcomes:
        self._next = max(self._next + self._period_s, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))
        self.lates.append(time.monotonic() - self._next)
        filled = [RowOutcome(chunk.slot, (97,)) for chunk in ticket.chunks if chunk.samples]
        return [*filled, Decoded(ticket.decodes, [97] * len(ticket.decodes))]

    def prepare(self) -> bool:
        return False

    def close(self) -> None:
        pass


class PacedBackend(ScriptedBackend):
    def __init__(self, rows: int, rate: float) -> None:
        super().__init__(Script(context_length=100_000))
        self._rows, self._rate = rows, rate

    def open_step(self, config: EngineConfig) -> Any:
        self.step = PacedStep(Capacity(self._rows * 100, 1024, self._rows), self._rate)
        return self.step


class Meter:
    """CPU of this thread, of each turn of its loop, and the lateness of a timer."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.turns: list[float] = []

    def watch(self, selector: Any) -> None:
        """From here on, a turn is what lies between two waits of the loop."""
        select, since = selector.select, [time.thread_time()]

        def watched(timeout: float | None = None) -> Any:
            self.turns.append(time.thread_time() - since[0])
            found = select(timeout)
            since[0] = time.thread_time()
            return found

        selector.select = watched

    async def run(self, seconds: float) -> None:
        gc.collect()
        gc.freeze()  # as `jitney serve` does
        loop = asyncio.get_running_loop()
        self.watch(loop._selector)  # type: ignore[attr-defined]  # asyncio has no public way to time a turn
        began, cpu = loop.time(), time.thread_time()
        while loop.time() < began + seconds:
            due = loop.time() + PROBE_S
            await asyncio.sleep(PROBE_S)
            self.lags.append(loop.time() - due)
        self.cpu_s = time.thread_time() - cpu

    def report(self, name: str, messages: int, extra: str = "") -> None:
        lags, turns = sorted(self.lags), sorted(self.turns)
        p50, p99 = (1000 * lags[int(len(lags) * q)] for q in (0.5, 0.99))
        turn = 1000 * turns[int(len(turns) * 0.99)]
        per_message = 1e6 * self.cpu_s / max(1, messages)
        print(
            f"{name:>10}  {messages:>7} messages  {per_message:5.1f} us CPU each  "
            f"CPU of a turn p99 {turn:.2f} ms, worst {1000 * turns[-1]:.1f} ms  "
            f"timer late p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {1000 * lags[-1]:.1f} ms  {extra}"
        )


async def until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.02)


async def jitney(args: argparse.Namespace) -> None:
    backend = PacedBackend(args.sockets, args.rate)
    async with DynamicEngine(backend, EngineConfig(max_rows=args.sockets)) as engine:
        loop = asyncio.get_running_loop()
        wakes = [0]
        call = loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> Any:
            wakes[0] += 1
            return call(*arguments, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]  # wake-ups are counted there
        ready: asyncio.Future[str] = loop.create_future()
        running = asyncio.create_task(serve(create_app(engine), port=0, on_ready=ready.set_result))
        url = (await ready).replace("http", "ws") + "/v1/responses"
        clients = drain(url, args.sockets, create=True)
        await until(lambda: engine.stats().running == args.sockets)
        await asyncio.sleep(0.5)
        writes, flush = [0], Outbox._flush

        def counting(outbox: Outbox) -> None:
            writes[0] += len(outbox._due)
            flush(outbox)

        Outbox._flush = counting  # type: ignore[method-assign]  # writes are counted there
        meter, before, woken = Meter(), engine.stats(), wakes[0]
        backend.step.lates.clear()
        await meter.run(args.seconds)
        after = engine.stats()
        steps = after.steps - before.steps
        messages = after.generated_tokens - before.generated_tokens
        lates = sorted(backend.step.lates)
        p50, p99 = (1e6 * lates[int(len(lates) * q)] for q in (0.5, 0.99))
        said = f"{wakes[0] - woken} wake-ups in {steps} steps; {writes[0]} writes; "
        meter.report("jitney", messages, said + f"worker late p50 {p50:.0f} us, p99 {p99:.0f} us")
        clients.kill()
        running.cancel()
        await asyncio.wait({running})


async def paced(args: argparse.Namespace, name: str, sends: list[Callable[[], Awaitable[None]]]) -> None:
    """One message for each socket, `rate` times a second."""
    await until(lambda: len(sends) == args.sockets)
    meter, period_s, count = Meter(), 1 / args.rate, 0
    metering = asyncio.create_task(meter.run(args.seconds))
    due = time.monotonic()
    while not metering.done():
        for send in sends:
            await send()
        count += len(sends)
        due += period_s
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    meter.report(name, count)


async def starlette(args: argparse.Namespace, name: str, protocol: Any) -> None:
    sends: list[Callable[[], Awaitable[None]]] = []
    frame = TEXT.encode()

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        send = frame_sender(websocket).send_frame
        sends.append((lambda: send(frame)) if name == "wire" else (lambda: websocket.send_text(TEXT)))
        await websocket.receive()

    app = Starlette(routes=[WebSocketRoute("/", handler)])
    config = uvicorn.Config(
        app, port=0, log_config=None, ws=protocol, ws_per_message_deflate=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    clients = drain(f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", args.sockets)
    await paced(args, name, sends)
    clients.kill()
    server.should_exit = True
    await running


async def websockets(args: argparse.Namespace) -> None:
    sends: list[Callable[[], Awaitable[None]]] = []
    frame = TEXT.encode()

    async def handler(connection: Any) -> None:
        sends.append(lambda: connection.send(frame, text=True))
        await connection.wait_closed()

    async with websockets_serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        clients = drain(f"ws://127.0.0.1:{port}/", args.sockets)
        await paced(args, "websockets", sends)
        clients.kill()


# The clients


def drain(url: str, count: int, *, create: bool = False) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "--drain", url, str(count), str(int(create))])


class Drain(asyncio.Protocol):
    """Upgrades, perhaps asks for an endless answer, and throws away what comes."""

    def __init__(self, url: str, create: bool) -> None:
        parts = urlsplit(url)
        key = base64.b64encode(os.urandom(16)).decode()
        self._hello = (
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        body = json.dumps({"type": "response.create", "input": "x", "ignore_eos": True}).encode()
        self._create = bytes((0x81, 0x80 | len(body), 0, 0, 0, 0)) + body if create else b""

    def connection_made(self, transport: Any) -> None:
        transport.write(self._hello)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._create:
            self._transport.write(self._create)
            self._create = b""


async def drain_all(url: str, count: int, create: bool) -> None:
    loop, parts = asyncio.get_running_loop(), urlsplit(url)
    for _ in range(count):
        await loop.create_connection(lambda: Drain(url, create), parts.hostname, parts.port)
    await asyncio.sleep(3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sockets", type=int, default=256)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--servers", nargs="+", default=["jitney", "wire", "asgi", "websockets"])
    parser.add_argument("--drain", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drain:
        url, count, create = args.drain
        asyncio.run(drain_all(url, int(count), create == "1"))
        return
    servers = {
        "jitney": lambda: jitney(args),
        "wire": lambda: starlette(args, "wire", FrameProtocol),
        "asgi": lambda: starlette(args, "asgi", "websockets-sansio"),
        "websockets": lambda: websockets(args),
    }
    for name in args.servers:
        asyncio.run(servers[name]())


if __name__ == "__main__":
    main()
