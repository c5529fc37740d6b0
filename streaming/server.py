"""The app: OpenAI's routes over one engine. Plain ASGI, so it runs alone or mounts under a prefix of a host app.

It touches no signal, no logging set-up and no global. It does not own the engine unless told to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..runtime.engines.dynamic import DynamicEngine
from ..runtime.errors import InvalidField, JitneyError
from .access.door import Door
from .chat_socket import ChatSocket
from .guard import Guard
from .http import ExchangeRoute, http_response
from .preparing import Prepare
from .protocols.chat import ChatCompletion
from .protocols.completions import Completion
from .protocols.errors import invalid, refusal
from .protocols.legacy_completions import LegacyCompletion
from .protocols.megatron import MegatronApi
from .routes.dashboard import DashboardFeed
from .routes.health import Health
from .routes.metrics import MetricsRoute
from .routes.models import Models
from .routes.pages import page_routes
from .routes.responses import Responses
from .routes.tickets import TicketOffice
from .routes.tokenizing import Tokenizing
from .service import Service
from .websocket import ResponsesSocket


def create_app(
    engine: DynamicEngine,
    *,
    served_model_name: str | None = None,
    api_key: str | None = None,
    keys_file: Path | None = None,
    metrics_key: str | None = None,
    allow_origins: Sequence[str] = (),
    allow_hosts: Sequence[str] = (),
    max_sockets: int = 4096,
    max_requests: int = 4096,
    owns_engine: bool = False,
    stalled_s: float = 30.0,
    system: str | None = None,
    prepare: Prepare | None = None,
    max_body_bytes: int = 4 * 2**20,
    max_frame_bytes: int = 2**20,
) -> Starlette:
    """An app that serves `engine` on the loop that started it.

    With `owns_engine` the app's lifespan starts and closes it; a mounted app has no lifespan, there the host does.
    `allow_origins` are further browser origins, such as "https://example.com"; `allow_hosts` are further Host headers
    on a loopback address without a key, such as those that a proxy on this machine sends. `keys_file` holds `[[key]]`
    tables (see `access.keys.Key`) and is read again when it changes; `metrics_key` opens `/metrics` where keys are
    asked for. `max_sockets` and `max_requests` bound what is open at a time. A step older than
    `stalled_s` makes the server not ready. `system` is the system prompt of the chat page's route, which its clients
    can neither read nor change; `prepare` may rewrite or refuse each request of every route.
    """
    for field, value in (("api_key", api_key), ("metrics_key", metrics_key)):
        if value == "":
            raise InvalidField(field, "a key of at least one character, or None", value)
    door = Door(
        api_key=api_key,
        keys_file=keys_file,
        metrics_key=metrics_key,
        allow_origins=allow_origins,
        allow_hosts=allow_hosts,
        max_sockets=max_sockets,
    )
    service = Service(
        engine,
        served_model_name,
        quotas=door.quotas,
        max_body_bytes=max_body_bytes,
        max_frame_bytes=max_frame_bytes,
        system=system,
        prepare=prepare,
    )
    app = Starlette(
        routes=_routes(service, door, stalled_s),
        middleware=[Middleware(Guard, door, max_requests)],
        exception_handlers={HTTPException: _http_error, JitneyError: _jitney_error},
        lifespan=_owning(engine) if owns_engine else None,
    )
    app.state.service = service
    return app


def _routes(service: Service, door: Door, stalled_s: float) -> list[BaseRoute]:
    def megatron(body: bytes, model: str) -> MegatronApi:
        return MegatronApi(body, service.backend.tokenizer)

    return [
        Route("/v1/chat/completions", ExchangeRoute(service, ChatCompletion), methods=["POST"]),
        Route("/v1/completions", ExchangeRoute(service, Completion), methods=["POST"]),
        Route("/completions", ExchangeRoute(service, LegacyCompletion), methods=["POST"]),
        Route("/api", ExchangeRoute(service, megatron), methods=["PUT"]),
        *Responses(service).routes(),
        *_socket_routes("/v1/responses", service, ResponsesSocket),
        *_socket_routes("/v1/chat/ws", service, ChatSocket),
        *Models(service).routes(),
        *Tokenizing(service).routes(),
        *TicketOffice(door).routes(),
        *Health(service, stalled_s).routes(),
        *MetricsRoute(service).routes(),
        *page_routes(),
        *DashboardFeed(service).routes(),
        WebSocketRoute("/{path:path}", _no_socket),
    ]


async def _no_socket(websocket: WebSocket) -> None:
    message = f"{websocket.url.path}: no WebSocket is served here"
    await websocket.send_denial_response(http_response(invalid(message, code="unknown_url", status=404)))


def _socket_routes(
    path: str, service: Service, kind: type[ResponsesSocket | ChatSocket]
) -> tuple[BaseRoute, BaseRoute]:
    """The socket, and what a GET without an upgrade is told."""

    async def serve(websocket: WebSocket) -> None:
        try:
            socket = kind(service, websocket)
        except JitneyError as exc:
            await websocket.send_denial_response(http_response(refusal(exc)))
            return
        with suppress(WebSocketDisconnect):
            await socket.run()

    return WebSocketRoute(path, serve), Route(path, _upgrade_required, methods=["GET"])


async def _upgrade_required(request: Request) -> Response:
    """426, at which clients fall back to HTTP at once."""
    message = f"GET {request.url.path}: a WebSocket; ask for it with an upgrade"
    answer = http_response(invalid(message, code="upgrade_required", status=426))
    answer.headers.update({"upgrade": "websocket", "connection": "upgrade"})
    return answer


def _owning(engine: DynamicEngine) -> Any:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with engine:
            yield

    return lifespan


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    message = f"{request.method} {request.url.path}: {exc.detail}"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(exc.status_code, "invalid_request")
    answer = http_response(invalid(message, code=code, status=exc.status_code))
    answer.headers.update(exc.headers or {})
    return answer


async def _jitney_error(request: Request, exc: Exception) -> Response:
    return http_response(refusal(exc))
