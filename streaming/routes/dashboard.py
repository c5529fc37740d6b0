"""`GET /v1/dashboard`: snapshots of the engine as server-sent events, twice a second, until the reader leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ..dashboard import Dashboard
from ..principal import Principal, principal_of
from ..pulse import KEEP_S
from ..service import Service

PERIOD_S = 0.5
NEW_S = 3
"""Seconds that a snapshot repeats: a slow reader misses none."""


class DashboardFeed:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._dashboard = Dashboard(service.engine, service.ledger.key_of)

    def routes(self) -> list[Route]:
        return [Route("/v1/dashboard", self._feed)]

    async def _feed(self, request: Request) -> Response:
        """Raises `EngineClosed` before the engine has started."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        model, principal = self._service.model, principal_of(request.scope)
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        snapshots = self._snapshots(model, principal)
        return StreamingResponse(snapshots, headers=headers, media_type="text/event-stream")

    async def _snapshots(self, model: str, principal: Principal) -> AsyncIterator[bytes]:
        """The first holds the past. The last is that of an engine that serves no longer, or of a server that stops."""
        num_seconds = KEEP_S
        while True:
            snapshot = self._dashboard.snapshot(principal, model, num_seconds=num_seconds)
            yield b"data: " + snapshot + b"\n\n"
            if not self._dashboard.is_serving or await self._service.ending.within(PERIOD_S):
                return
            num_seconds = NEW_S
