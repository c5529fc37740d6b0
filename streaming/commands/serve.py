"""`jitney serve`: one engine behind one port, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...runtime.errors import InvalidField, JitneyError
from .opening import opened, stderr
from .options import DEFAULT_MODEL, Dtype, MaxRows, Model, Quantize, Scripted, Threads, num_bytes

if TYPE_CHECKING:
    from ...runtime import EngineConfig


def serve(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="The name in requests and replies.  [default: the model's]")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="JITNEY_API_KEY", help="The key that clients must send.", show_envvar=True),
    ] = None,
    insecure_no_key: Annotated[
        bool, typer.Option("--insecure-no-key", help="Listen on a network address without a key.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="A browser origin to let in, such as https://example.com; repeatable."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further Host header to accept without a key; repeatable.")
    ] = None,
    scripted: Scripted = None,
    quantize: Quantize = None,
    dtype: Dtype = "auto",
    max_rows: MaxRows = 32,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Caps the model's own context length.")
    ] = None,
    kv_cache_bytes: Annotated[
        int | None,
        typer.Option(parser=num_bytes, metavar="SIZE", help="Such as 2GiB.  [default: what is free]"),
    ] = None,
    threads: Threads = None,
    drain_s: Annotated[
        float,
        typer.Option(min=0, help="On SIGTERM: seconds for open answers to end before they are cancelled."),
    ] = 30.0,
) -> None:
    """Serve a model over HTTP and WebSocket, in OpenAI's protocols."""
    from ...runtime import EngineConfig

    if not (api_key or insecure_no_key or _is_loopback(host)):
        raise InvalidField("--host", "a loopback address, or --api-key, or --insecure-no-key", host)
    config = EngineConfig(
        dtype=dtype,
        quantize=quantize,
        max_rows=max_rows,
        max_context=max_context,
        kv_cache_bytes=kv_cache_bytes,
        num_threads=threads,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("jitney").setLevel(logging.INFO)
    app_options = {
        "served_model_name": served_model_name,
        "api_key": api_key or None,
        "allow_origins": allow_origin or (),
        "allow_hosts": allow_host or (),
    }
    address = {"host": host, "port": port, "drain_s": drain_s}
    try:
        asyncio.run(_serve(model, scripted, config, app_options, address))
    except OSError as error:
        raise JitneyError(f"cannot serve at {host}, port {port}: {error}") from error


async def _serve(
    model: str,
    scripted: Path | None,
    config: EngineConfig,
    app_options: dict[str, Any],
    address: dict[str, Any],
) -> None:
    from ..serve import serve as run_server
    from ..server import create_app

    async with opened(model, scripted, config) as engine:
        await run_server(create_app(engine, **app_options), on_ready=_announce, **address)


def _announce(url: str) -> None:
    stderr().print(f"jitney serves at {url}", soft_wrap=True)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
