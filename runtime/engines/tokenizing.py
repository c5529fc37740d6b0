"""The threads that tokenise: as many as leave the other cores to the step, the loop and their helpers."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ..process import num_cores

MOST_THREADS = 4
CORES_A_THREAD = 4

logger = logging.getLogger("jitney")


class Tokenizing(ThreadPoolExecutor):
    """Made and ended on the engine's loop."""

    def __init__(self, num_threads: int | None = None) -> None:
        self._num_threads = num_threads or max(1, min(MOST_THREADS, num_cores() // CORES_A_THREAD))
        super().__init__(self._num_threads, thread_name_prefix="jitney-tokenizer")

    async def end(self, patience_s: float) -> None:
        """Let every thread finish what it has, a model being looked up for one, without holding the loop: one job for
        each, which waits until all have begun. After `patience_s` they are left behind."""
        loop, gate, has_ended = asyncio.get_running_loop(), threading.Barrier(self._num_threads), True
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*(loop.run_in_executor(self, _meet, gate) for _ in range(gate.parties)))
        except TimeoutError:
            logger.error("the model is still being opened; its thread is left behind")
            has_ended = False
        except RuntimeError:
            pass  # the interpreter is on its way out, and takes no more jobs; or a thread too many
        finally:
            gate.abort()  # whoever still waits there waits for nobody
        self.shutdown(wait=has_ended)


def _meet(gate: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        gate.wait()
