"""Log lines as text or as JSON, each with the id of the request that it belongs to. Never a prompt, never a query.

Only the command line sets logging up; inside a host program the records go where the host sends them.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request or socket that the running task serves."""

LEVELS = ("debug", "info", "warning", "error")


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one answer used: the line that is logged when it ends. Times are in seconds since it was accepted."""

    response: str
    request: str
    key: str
    model: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queued_s: float | None
    first_token_s: float | None
    total_s: float | None


class TextFormat(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        name = request_id.get()
        record.request = f" [{name}]" if name else ""
        return super().format(record)


class JSONFormat(logging.Formatter):
    """One object a line: `time` (Unix seconds), `level`, `logger`, `message`, and where there are any `request`,
    `error` (a traceback), and the fields of a usage line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request"] = request_id.get()
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        usage = getattr(record, "usage", None)
        if isinstance(usage, Usage):
            line.update(msgspec.structs.asdict(usage))
        return msgspec.json.encode(line).decode()


def log_usage(usage: Usage) -> None:
    """At level info, under `jitney.usage`."""
    logger = logging.getLogger("jitney.usage")
    if logger.isEnabledFor(logging.INFO):
        fields = msgspec.structs.asdict(usage)
        text = " ".join(f"{name}={_brief(value)}" for name, value in fields.items() if value is not None)
        logger.info("%s", text, extra={"usage": usage})


def set_up(form: Literal["text", "json"], level: str) -> None:
    """Send the records of `jitney` to standard error. For a program of our own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormat() if form == "json" else TextFormat())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("jitney").setLevel(level.upper())


def _brief(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
