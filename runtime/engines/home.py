"""The loop that an engine belongs to, and the way there from other loops and threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from ..errors import EngineClosed

T = TypeVar("T")


class HomeLoop:
    """Created on the owner. Everything else may be called from any loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    @property
    def is_elsewhere(self) -> bool:
        """Whether the caller's loop is another one."""
        return asyncio.get_running_loop() is not self.loop

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine at home and wait for it here. Raises `EngineClosed` if the loop does not run, or ends."""
        if not self.loop.is_running():
            coroutine.close()
            state = "closed" if self.loop.is_closed() else "not running"
            raise EngineClosed(f"the loop that the engine was started on is {state}")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise EngineClosed("the loop that the engine was started on has ended") from None

    async def iterate(self, items: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Advance a generator at home, an item at a time, and close it there when the reader here leaves."""
        # Held at home: who leaves while an item is awaited closes once that has been cancelled.
        turn = asyncio.Lock()

        async def advance() -> tuple[T] | None:
            async with turn:
                async for item in items:
                    return (item,)
                return None

        async def leave() -> None:
            async with turn:
                await items.aclose()

        try:
            while (item := await self.run(advance())) is not None:
                yield item[0]
        finally:
            await self.run(leave())
