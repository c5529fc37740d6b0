"""What the engine says while it loads and captures, shown beside the name of what is loading."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.status import Status
from rich.text import Text

from .opening import stderr

LOGGER = logging.getLogger("jitney")


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Around the start of an engine. Nothing is shown where standard error is no terminal."""
    title = f"Loading {what} …"
    level, has_handlers = LOGGER.level, LOGGER.hasHandlers()
    with stderr().status(Text(title)) as status:
        handler = _Shown(status, title, is_alone=not has_handlers)
        LOGGER.addHandler(handler)
        if LOGGER.getEffectiveLevel() > logging.INFO and not has_handlers:
            LOGGER.setLevel(logging.INFO)
        try:
            yield
        finally:
            LOGGER.removeHandler(handler)
            LOGGER.setLevel(level)


class _Shown(logging.Handler):
    """Called on any thread. Where it stands alone, warnings are printed as Python would without it."""

    def __init__(self, status: Status, title: str, *, is_alone: bool) -> None:
        super().__init__(logging.INFO)
        self._status, self._title, self._is_alone = status, title, is_alone

    def emit(self, record: logging.LogRecord) -> None:
        self._status.update(Text(f"{self._title} {record.getMessage()}"))
        if self._is_alone and record.levelno >= logging.WARNING and logging.lastResort is not None:
            logging.lastResort.handle(record)
