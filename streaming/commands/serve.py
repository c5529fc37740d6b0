"""`jitney serve`: one engine behind one port, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from ...runtime.config import EngineConfig
from ...runtime.errors import EngineDied, InvalidField, JitneyError
from ..garbage import collected_when_quiet, settle
from ..logs import set_up
from .engine_options import EngineOptions
from .opening import loading, stderr
from .options import DEFAULT_MODEL, MaxRows, Model, Scripted, Threads, num_bytes, with_options
from .settings import read_settings, shown

logger = logging.getLogger("jitney.streaming")

EXIT_S = 5.0
"""How long a process whose engine died may take to end: a thread that is stuck in a driver does not hold it."""


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Each field is an option of the same name."""

    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000
    served_model_name: Annotated[
        str | None, typer.Option(help="The name in requests and replies.  [default: the model's]")
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=read_settings,
            help="A TOML file of these options; JITNEY_* variables and flags go over it.",
        ),
    ] = None
    api_key: Annotated[str | None, typer.Option(help="The key that clients must send.", show_envvar=True)] = (
        None
    )
    keys: Annotated[
        Path | None, typer.Option(help="A TOML file of [[key]] tables; read again when it changes.")
    ] = None
    insecure_no_key: Annotated[
        bool, typer.Option("--insecure-no-key", help="Listen on a network address without a key.")
    ] = False
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="A browser origin to let in, such as https://example.com; repeatable."),
    ] = None
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further Host header to accept without a key; repeatable.")
    ] = None
    metrics_key: Annotated[
        str | None, typer.Option(help="The key that /metrics asks for.", show_envvar=True)
    ] = None
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve /metrics, without a key, at this port too.")
    ] = None
    metrics_host: Annotated[str, typer.Option(help="The address of that port.")] = "127.0.0.1"
    system: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A file: the chat page's system prompt, hidden from it."
        ),
    ] = None
    scripted: Scripted = None
    max_rows: MaxRows = None
    max_context: Annotated[int | None, typer.Option(min=1, help="Caps the model's own context length.")] = (
        None
    )
    kv_cache_bytes: Annotated[
        int | None,
        typer.Option(parser=num_bytes, metavar="SIZE", help="Such as 2GiB.  [default: what is free]"),
    ] = None
    threads: Threads = None
    max_queued: Annotated[int, typer.Option(min=1, help="Requests that may wait for a seat.")] = 1024
    max_sockets: Annotated[int, typer.Option(min=1, help="WebSockets that may be open.")] = 4096
    max_requests: Annotated[int, typer.Option(min=1, help="HTTP requests that may be open.")] = 4096
    stalled_s: Annotated[
        float, typer.Option(min=0.1, help="A step that takes longer makes /ready say 503.")
    ] = 30.0
    drain_s: Annotated[
        float,
        typer.Option(min=0, help="On SIGTERM: seconds for open answers to end before they are cancelled."),
    ] = 30.0
    log_format: Annotated[Literal["text", "json"], typer.Option(help="Of the log on standard error.")] = (
        "text"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="The least that is logged.")
    ] = "info"

    def engine_settings(self) -> dict[str, Any]:
        """As `EngineConfig` names them."""
        names = ("max_rows", "max_context", "kv_cache_bytes", "max_queued")
        return {name: getattr(self, name) for name in names} | {"num_threads": self.threads}

    def app_settings(self) -> dict[str, Any]:
        """As `create_app` names them. Reads the system prompt."""
        return {
            "served_model_name": self.served_model_name,
            "api_key": self.api_key or None,
            "keys_file": self.keys,
            "metrics_key": self.metrics_key or None,
            "allow_origins": self.allow_origin or (),
            "allow_hosts": self.allow_host or (),
            "max_sockets": self.max_sockets,
            "max_requests": self.max_requests,
            "stalled_s": self.stalled_s,
            "system": None if self.system is None else self.system.read_text(encoding="utf-8"),
        }

    def address(self) -> dict[str, Any]:
        """Where the server listens, and how long it drains."""
        names = ("host", "port", "drain_s", "metrics_host", "metrics_port")
        return {name: getattr(self, name) for name in names}

    def check_key(self) -> None:
        """Raises `InvalidField` where a network address would be open to everybody."""
        if not (self.api_key or self.keys or self.insecure_no_key or _is_loopback(self.host)):
            expected = "a loopback address, or --api-key, --keys or --insecure-no-key"
            raise InvalidField("--host", expected, self.host)


@with_options
def serve(
    ctx: typer.Context, model: Model = DEFAULT_MODEL, *, options: ServeOptions, engine: EngineOptions
) -> None:
    """Serve a model over HTTP and WebSocket, in OpenAI's protocols."""
    options.check_key()
    set_up(options.log_format, options.log_level)
    logger.info("settings: %s", shown(ctx))
    config = engine.config(**options.engine_settings())
    try:
        asyncio.run(_serve(model, options.scripted, config, options.app_settings(), options.address()))
    except OSError as error:
        raise JitneyError(f"cannot serve at {options.host}, port {options.port}: {error}") from error


async def _serve(
    model: str,
    scripted: Path | None,
    config: EngineConfig,
    app_options: dict[str, Any],
    address: dict[str, Any],
) -> None:
    """It listens before the model is loaded: health can be asked from the start."""
    from ...runtime import DynamicEngine
    from ...runtime.testing import ScriptedBackend
    from ..serve import serve as run_server
    from ..server import create_app

    engine = DynamicEngine(ScriptedBackend.from_file(scripted) if scripted else model, config)
    app = create_app(engine, **app_options)

    async def start() -> None:
        with loading(str(scripted or model)):
            await engine.start()
        settle()

    def is_quiet() -> bool:
        stats = engine.stats()
        return not (stats.waiting or stats.running)

    try:
        async with collected_when_quiet(is_quiet):
            await run_server(app, starting=start, on_ready=_announce, **address)
    except EngineDied:
        _leave_soon()
        raise
    finally:
        await engine.close()


def _leave_soon() -> None:
    timer = threading.Timer(EXIT_S, os._exit, (2,))
    timer.daemon = True
    timer.start()


def _announce(url: str) -> None:
    stderr().print(f"jitney serves at {url}", soft_wrap=True)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
