"""The paths that are WebSockets, asked without an upgrade: 426, at which clients fall back to HTTP at once."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..http import http_response
from ..protocols.errors import invalid


def upgrade_routes() -> list[Route]:
    return [Route(path, _upgrade_required, methods=["GET"]) for path in ("/v1/responses", "/v1/chat/ws")]


async def _upgrade_required(request: Request) -> Response:
    message = f"GET {request.url.path}: a WebSocket; ask for it with an upgrade"
    answer = http_response(invalid(message, code="upgrade_required", status=426))
    answer.headers.update({"upgrade": "websocket", "connection": "upgrade"})
    return answer
