"""Running the app on uvicorn until a signal: the one place of the package that touches signals."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette

from ..runtime.errors import EngineDied
from .line import Outbox
from .routes.metrics import metrics_app
from .sender import open_sender
from .service import Service
from .wire import FrameProtocol, HttpProtocol

logger = logging.getLogger("jitney.streaming")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FLUSH_S = 5
"""How long uvicorn may take to close connections once they have been told to."""
LOOK_S = 0.25
"""Between two looks at whether the engine lives."""
LAST_WORDS_S = 2.0
"""How long the clients of an engine that died may take to read so."""


async def serve(
    app: Starlette,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    drain_s: float = 30.0,
    metrics_host: str = "127.0.0.1",
    metrics_port: int | None = None,
    starting: Callable[[], Awaitable[None]] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an app of `create_app` until SIGINT or SIGTERM, or until cancelled.

    On a signal new requests get 503 while open answers have `drain_s` to end; then those that have not are cancelled,
    and sockets close with 1012. A second signal ends the wait. `starting` is awaited once connections are accepted, so
    that health can be asked meanwhile; a signal cancels it. `on_ready` is then called with the URL; port 0 picks a
    free one. With `metrics_port`, `/metrics` is also served there, without a key. Raises `OSError` where an address
    cannot be had, what `starting` raises, and `EngineDied` when the engine has: after its clients have been told.
    """
    async with AsyncExitStack() as stack:
        if metrics_port is not None:
            watching = metrics_app(app.state.service)
            listener = stack.enter_context(_listen(metrics_host, metrics_port))
            await stack.enter_async_context(_running(_Server(_config(watching, 2**16)), listener))
            logger.info("metrics at %s/metrics", _url(metrics_host, listener))
        listener = _listen(host, port)
        outbox = Outbox(open_sender())
        stack.callback(outbox.close)
        server = _Server(_config(app, app.state.service.max_frame_bytes, outbox))
        stop = stack.enter_context(_signals())
        running = await stack.enter_async_context(_running(server, listener))
        stack.push_async_callback(app.state.service.stop)
        started = starting is None or await _start(starting, running, stop)
        if not started or running.done():
            return
        if on_ready is not None:
            on_ready(_url(host, listener))
        await _ending(app.state.service, running, stop)
        has_died = app.state.service.engine.state == "dead"
        if not running.done():
            await _drain(app.state.service, min(drain_s, LAST_WORDS_S) if has_died else drain_s, stop)
        if has_died:
            raise EngineDied("the engine died and serves nothing more; the log says of what")


async def _ending(service: Service, running: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Wait for the end of the server, for a signal, or for the engine's death."""
    while service.engine.state != "dead" and not running.done() and not stop.is_set():
        await _first(stop, running, timeout_s=LOOK_S)


async def _start(
    starting: Callable[[], Awaitable[None]], running: asyncio.Task[None], stop: asyncio.Event
) -> bool:
    """Whether it has started before a signal came, or the server ended."""
    started = asyncio.ensure_future(starting())
    try:
        await _first(stop, started, running)
        if started.done():
            await started
        return started.done()
    finally:
        if started.cancel():
            await asyncio.wait({started})


@asynccontextmanager
async def _running(server: _Server, listener: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """The task of a server that accepts connections, or has failed to. It has ended afterwards."""
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _first(server.accepting, running)
        yield running
    finally:
        server.should_exit = True
        await running


async def _drain(service: Service, drain_s: float, stop: asyncio.Event) -> None:
    logger.info("draining for at most %g s", drain_s)
    stop.clear()
    draining = asyncio.create_task(service.drain(drain_s))
    await _first(stop, draining)
    if draining.cancel() or not draining.result():
        logger.warning("closing with answers open")


def _config(app: Starlette, max_frame_bytes: int, outbox: Outbox | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=partial(FrameProtocol, outbox=outbox),  # type: ignore[arg-type]  # uvicorn only calls it
        ws_max_size=max_frame_bytes,
        ws_per_message_deflate=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=FLUSH_S,
    )


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers. `accepting` is set once connections are accepted."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that is set by each signal; the former handlers are back afterwards."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def handle(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(stop.set)

    is_main = threading.current_thread() is threading.main_thread()
    former = {number: signal.signal(number, handle) for number in SIGNALS if is_main}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


async def _first(event: asyncio.Event, *tasks: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Wait for the event, or for the end of one of the tasks."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, *tasks}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket that says it is TCP: asyncio switches Nagle's delay off only on such ones."""
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"
