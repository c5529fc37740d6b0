"""Every failure as clients of OpenAI expect it: a status, and a body that names the type, the field and a code."""

from __future__ import annotations

import logging
import math
from typing import Any

import msgspec

from ...runtime.errors import (
    EngineDied,
    EngineError,
    GenerationFailed,
    ModelNotFound,
    QueueFull,
    RequestError,
)
from ...runtime.events import Event

logger = logging.getLogger("jitney.streaming")


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """An error on its way out. `retry_after_s` becomes a header."""

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    def error(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.error()})

    def headers(self) -> dict[str, str]:
        return (
            {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}
        )

    def frame(self, stream_id: str | None, sequence_number: int | None = None) -> bytes:
        """The WebSocket form: nested, with its status, on its lane, with its number where it ends a response."""
        error = self.error()
        if self.headers():
            error["headers"] = self.headers()
        event: dict[str, Any] = {"type": "error", "status": self.status, "error": error}
        if stream_id is not None:
            event["stream_id"] = stream_id
        if sequence_number is not None:
            event["sequence_number"] = sequence_number
        return msgspec.json.encode(event)


def invalid(message: str, *, code: str, param: str | None = None, status: int = 400) -> Refusal:
    """A refusal that blames the request."""
    return Refusal(status=status, type="invalid_request_error", message=message, code=code, param=param)


CANCELLED = "cancelled"


def server_error(
    message: str, *, code: str = "server_error", status: int = 500, retry_after_s: float | None = None
) -> Refusal:
    """A refusal that blames the server."""
    return Refusal(
        status=status, type="server_error", message=message, code=code, retry_after_s=retry_after_s
    )


STOPPING = server_error("the server is stopping", code="engine_closed", status=503, retry_after_s=1.0)


class Refused(RequestError):
    """A refusal with a code of the wire's own."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, field=refusal.param)
        self.refusal = refusal


def refusal(exc: Exception) -> Refusal:
    """What a client is told of an exception. One that is not of ours is logged and shown without its text."""
    if isinstance(exc, ModelNotFound):
        return invalid(str(exc), code=exc.code, param="model", status=404)
    if isinstance(exc, Refused):
        return exc.refusal
    if isinstance(exc, RequestError):
        return invalid(str(exc), code=exc.code, param=exc.field)
    if isinstance(exc, QueueFull):
        code = "rate_limit_exceeded"
        return Refusal(
            status=429, type="rate_limit_error", message=str(exc), code=code, retry_after_s=exc.retry_after_s
        )
    if isinstance(exc, EngineError):
        code = "engine_died" if isinstance(exc, EngineDied) else "engine_closed"
        return server_error(str(exc), code=code, status=503, retry_after_s=1.0)
    if isinstance(exc, GenerationFailed):
        return server_error(str(exc))
    logger.error("a request failed", exc_info=exc)
    return server_error("the server failed; see its log")


def failure(event: Event) -> Refusal | None:
    """What a client is told of a response that did not end by itself; None if it did."""
    if event.finish_reason == "cancelled":
        message = event.error or "the response was cancelled"
        return Refusal(status=499, type="cancelled_error", message=message, code=CANCELLED)
    if event.finish_reason == "deadline":
        message = event.error or "the deadline passed before the answer was complete"
        return Refusal(status=504, type="timeout_error", message=message, code="deadline_exceeded")
    if event.finish_reason == "error" or event.error is not None:
        return server_error(event.error or "the generation failed")
    return None
