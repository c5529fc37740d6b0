"""`/live`, `/ready` and its alias `/health`: true at the moment of asking, open to everybody, and silent on the rest.

A process that is not live should be restarted; one that is not ready should get no traffic for now.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..http import json_reply
from ..service import Service

RETRY = {"retry-after": "1"}


class Health:
    """`stalled_s`: a step older than this makes the server not ready."""

    def __init__(self, service: Service, stalled_s: float) -> None:
        self._engine = service.engine
        self._registry = service.registry
        self._stalled_s = stalled_s

    def routes(self) -> list[Route]:
        return [
            Route("/live", self._live),
            Route("/ready", self._ready),
            Route("/health", self._ready),
        ]

    async def _live(self, request: Request) -> Response:
        is_dead = self._engine.state == "dead"
        return json_reply({"status": "dead" if is_dead else "live"}, 503 if is_dead else 200)

    async def _ready(self, request: Request) -> Response:
        """`ready` with 200; `starting`, `draining`, `stalled`, `dead` or `closed` with 503."""
        stats = self._engine.stats()
        is_stalled = stats.state == "ready" and stats.step_age_s >= self._stalled_s
        status = "stalled" if is_stalled else stats.state
        if status == "ready" and self._registry.is_closing:
            status = "draining"
        is_ready = status == "ready"
        return json_reply({"status": status}, 200 if is_ready else 503, {} if is_ready else RETRY)
