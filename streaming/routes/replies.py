"""What these routes answer with: JSON, or a refusal."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..http import read_body
from ..protocols.errors import Refusal, Refused
from ..protocols.fields import parse


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


async def json_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """The request's JSON object. Raises `RequestError`; `Refused` with 413 where it is too large."""
    body = await read_body(request, max_bytes)
    if isinstance(body, Refusal):
        raise Refused(body)
    return parse(body)
