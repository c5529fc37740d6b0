"""What the frames of `WS /v1/responses` mean to a client: events for the reader of an answer, or an error to raise."""

from __future__ import annotations

from typing import Any

import msgspec

from ..runtime.errors import (
    ContextLengthExceeded,
    EngineClosed,
    JitneyError,
    ModelNotFound,
    QueueFull,
    RequestError,
)
from ..runtime.events import Event, Times, Usage

ENDINGS = ("response.completed", "response.incomplete", "response.failed", "error")
FORGOTTEN = ("resume_window_expired", "response_not_found")
LOST = "connection_lost"
"""The code of the error that a client makes up for the answers that a lost connection cuts off."""


class ConnectionLost(JitneyError):
    """The socket was refused, or closed and did not come back in time, or the answer is no longer kept."""


def lost(lane_id: str, why: str) -> dict[str, Any]:
    """The frame that ends an answer of a connection that is lost for good."""
    return {"type": "error", "stream_id": lane_id, "error": {"code": LOST, "message": why}}


def event_of(frame: dict[str, Any]) -> Event | None:
    """None for a frame that says nothing to the reader. Raises what an error frame says."""
    kind = frame["type"]
    if kind == "error":
        raise _error(frame)
    if kind == "response.output_text.delta":
        response_id = "resp_" + frame["item_id"].removeprefix("msg_")
        return Event(response_id, frame["sequence_number"], "delta", text=frame["delta"])
    return _done(frame["sequence_number"], frame["response"]) if kind in ENDINGS else None


def _done(seq: int, response: dict[str, Any]) -> Event:
    usage, extras = response["usage"], response["jitney"]
    cached = usage["input_tokens_details"]["cached_tokens"]
    return Event(
        response["id"],
        seq,
        "done",
        finish_reason=extras["finish_reason"],
        usage=Usage(usage["input_tokens"], usage["output_tokens"], cached),
        times=None if extras["times"] is None else msgspec.convert(extras["times"], Times),
        error=(response["error"] or {}).get("message"),
    )


def _error(frame: dict[str, Any]) -> JitneyError:
    error = frame["error"]
    code, message, field = error["code"], error.get("message", ""), error.get("param")
    if code == LOST or code in FORGOTTEN:
        return ConnectionLost(message)
    if frame["status"] == 429:
        return QueueFull(message, retry_after_s=float(error.get("headers", {}).get("retry-after", 1)))
    if frame["status"] == 503:
        return EngineClosed(message)
    if frame["status"] == 404:
        return ModelNotFound(message, field=field)
    refused = ContextLengthExceeded if code == ContextLengthExceeded.code else RequestError
    return refused(message, field=field)
