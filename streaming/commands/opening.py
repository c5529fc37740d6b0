"""Opening the engine that a command runs on, with what is happening shown on standard error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from ...runtime import DynamicEngine, EngineConfig


def stderr() -> Console:
    """Where people are spoken to; standard output is for answers."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@asynccontextmanager
async def opened(model: str, scripted: Path | None, config: EngineConfig) -> AsyncIterator[DynamicEngine]:
    """A running engine on the model, or on a scripted file. Raises `JitneyError` where that cannot be loaded."""
    from ...runtime import DynamicEngine
    from ...runtime.testing import ScriptedBackend
    from .progress import loading

    async with AsyncExitStack() as stack:
        with loading(str(scripted or model)):
            source = ScriptedBackend.from_file(scripted) if scripted else model
            engine = await stack.enter_async_context(DynamicEngine(source, config))
        yield engine
