"""Log lines as text or as JSON, each with the id of the request that it belongs to. Never a prompt, never a query.

Only the command line sets logging up; inside a host program the records go where the host sends them.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

from .log_lines import LogLines

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request or socket that the running task serves."""

STANDARD_ERROR = 2
USAGE = "jitney_usage"
"""The attribute of a record that holds the fields of a usage line."""


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
        line |= getattr(record, USAGE, {})
        return msgspec.json.encode(line).decode()


def log_usage(**fields: Any) -> None:
    """What one answer used, at level info, under `jitney.usage`."""
    logger = logging.getLogger("jitney.usage")
    if logger.isEnabledFor(logging.INFO):
        text = " ".join(f"{name}={_brief(value)}" for name, value in fields.items() if value is not None)
        logger.info("%s", text, extra={USAGE: fields})


def set_up(form: Literal["text", "json"], level: str) -> None:
    """Send the records of `jitney` to standard error. For a program of our own."""
    handler = LogLines(STANDARD_ERROR)
    handler.setFormatter(JSONFormat() if form == "json" else TextFormat())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("jitney").setLevel(level.upper())


def _brief(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
