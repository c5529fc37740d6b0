"""`GET /v1/models` and `/v1/models/{name}`: the one model that is served."""

from __future__ import annotations

from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..http import json_reply
from ..protocols.fields import check_model
from ..service import Service


class Models:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._created = int(time())

    def routes(self) -> list[Route]:
        return [Route("/v1/models", self._list), Route("/v1/models/{model:path}", self._one)]

    async def _list(self, request: Request) -> Response:
        return json_reply({"object": "list", "data": [self._model()]})

    async def _one(self, request: Request) -> Response:
        check_model(request.path_params["model"], self._service.model)
        return json_reply(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._service.model,
            "object": "model",
            "created": self._created,
            "owned_by": "jitney",
            "max_model_len": self._service.engine.context_length,
        }
