"""Opening the engine that a command runs on; what it says meanwhile is shown on standard error."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status
from rich.text import Text

if TYPE_CHECKING:
    from ...runtime import DynamicEngine, EngineConfig

LOGGER = logging.getLogger("jitney")


def stderr() -> Console:
    """Where people are spoken to; standard output is for answers."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@asynccontextmanager
async def opened(model: str, scripted: Path | None, config: EngineConfig) -> AsyncIterator[DynamicEngine]:
    """A running engine on the model, or on a scripted file. Raises `JitneyError` where that cannot be loaded."""
    from ...runtime import DynamicEngine
    from ...runtime.testing import ScriptedBackend

    async with AsyncExitStack() as stack:
        with loading(str(scripted or model)):
            source = ScriptedBackend.from_file(scripted) if scripted else model
            engine = await stack.enter_async_context(DynamicEngine(source, config))
        yield engine


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
