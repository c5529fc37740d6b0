"""200 clients that stop reading beside 50 that read: what the server holds, and what the others notice.

    python benchmarks/slow_readers.py [--stalled 200] [--normal 50] [--seconds 12]

One process serves a scripted model at 50 tokens a second; another holds the clients. Each stalled client asks for an
answer of 1,000 tokens (some 190 KB of frames) through a receive buffer of 4 KiB and never reads; they are generated
first, and the others measured after that, before the keep-alive gives the stalled ones up (40 s). Printed: the
largest user-space buffer of any connection, the server's growth in memory, and the p99 gap between deltas of the
normal clients, alone and beside the stalled ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import psutil
from websockets.asyncio.client import connect

from jitney.runtime import DynamicEngine, EngineConfig
from jitney.runtime.testing import Reply, Script, ScriptedBackend
from jitney.streaming import create_app, serve, wire
from jitney.streaming.line import Line

STEP_S = 0.02
LEAVE = {"on_disconnect": "cancel"}
READ = Reply(match="read", text="word " * 20_000, token_s=STEP_S)
STALL = Reply(match="stall", text="word " * 200)


class Watched(Line):
    """Remembers the most that any connection held beside the kernel's buffers."""

    most = 0

    def flush(self) -> None:
        held = self.held_bytes
        super().flush()
        Watched.most = max(Watched.most, held + self._transport.get_write_buffer_size())


async def _serve(pipe: Connection, rows: int) -> None:
    wire.Line = Watched  # type: ignore[misc]  # the same line, its buffers watched
    script = Script(reply=[READ, STALL], context_length=110_000, max_rows=rows)
    config = EngineConfig(max_rows=rows, max_queued=100_000, kv_cache_bytes=16 * 200_000)
    async with DynamicEngine(ScriptedBackend(script), config) as engine:
        running = asyncio.create_task(serve.serve(create_app(engine), port=0, on_ready=pipe.send))
        await asyncio.to_thread(pipe.recv)
        pipe.send(Watched.most)
        running.cancel()
        await asyncio.wait({running})


def _server(pipe: Connection, rows: int) -> None:
    asyncio.run(_serve(pipe, rows))


async def _read(uri: str, gaps: list[float], until: float) -> None:
    """One normal client; the gaps between its deltas, merged ones included."""
    async with connect(uri, proxy=None, max_size=None) as ws:
        await ws.send(json.dumps({"type": "response.create", "input": "read", "jitney": LEAVE}))
        times = []
        while time.perf_counter() < until:
            if b"output_text.delta" in await ws.recv(decode=False):
                times.append(time.perf_counter())
    gaps += [b - a for a, b in pairwise(times)]


async def _stall(uri: str) -> Any:
    parts = urlsplit(uri)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((parts.hostname, parts.port))
    ws = await connect(uri, sock=raw, proxy=None, max_queue=1, close_timeout=0.1, ping_interval=None)
    ws.transport.pause_reading()
    await ws.send(json.dumps({"type": "response.create", "input": "stall", "jitney": LEAVE}))
    return ws


async def _round(uri: str, normal: int, seconds: float) -> float:
    """The p99 gap of the normal clients."""
    gaps: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_read(uri, gaps, until) for _ in range(normal)))
    return sorted(gaps)[len(gaps) * 99 // 100]


async def _measure(url: str, pid: int, args: argparse.Namespace) -> None:
    uri = url.replace("http", "ws") + "/v1/responses"
    process = psutil.Process(pid)
    await _round(uri, args.normal, 3)
    alone = await _round(uri, args.normal, args.seconds)
    before = process.memory_info().rss
    stalled = [await _stall(uri) for _ in range(args.stalled)]
    await asyncio.sleep(args.settle)
    beside = await _round(uri, args.normal, args.seconds)
    grown = process.memory_info().rss - before
    for ws in stalled:
        ws.transport.abort()
    print(f"p99 gap alone {alone * 1e3:.1f} ms, beside {beside * 1e3:.1f} ms: {beside / alone:.2f} times")
    print(f"memory up {grown / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stalled", type=int, default=200)
    parser.add_argument("--normal", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--settle", type=float, default=15.0)
    args = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_server, args=(theirs, args.normal + 64))
    server.start()
    assert server.pid is not None
    asyncio.run(_measure(ours.recv(), server.pid, args))
    ours.send("stop")
    print(f"largest buffer of a connection {ours.recv() / 1024:.0f} KiB")
    server.join()


if __name__ == "__main__":
    main()
