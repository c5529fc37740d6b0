"""`GET /metrics`, for Prometheus. The samples are taken on the loop, and written out on another thread."""

from __future__ import annotations

import anyio.to_thread
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..access.door import METRICS_PATH, Door
from ..guard import Guard
from ..service import Service

MAX_READERS = 16


def metrics_app(service: Service) -> Starlette:
    """`/metrics` alone, without a key, for a port of its own. On loopback the Host is checked as everywhere."""
    door = Door()
    return Starlette(routes=MetricsRoute(service).routes(), middleware=[Middleware(Guard, door, MAX_READERS)])


class MetricsRoute:
    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        return [Route(METRICS_PATH, self._read)]

    async def _read(self, request: Request) -> Response:
        service = self._service
        families = service.metrics.families(service.engine.stats(), service.model)
        text = await anyio.to_thread.run_sync(_written, families)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


class _Taken(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _written(families: list[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Taken(families))
    return generate_latest(registry)
