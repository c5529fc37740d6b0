"""torch's thread count belongs to the whole process: held while any step is open, put back when the last one closes.

The count is a setting of the calling thread too, so a step acquires it on the thread that computes.
"""

from __future__ import annotations

import logging
import threading

import torch

from ..process import num_cores

logger = logging.getLogger("jitney")


class TorchThreads:
    """Reference-counted; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before = 0

    def acquire(self, num_threads: int | None) -> None:
        """The first holder decides; None means this machine's default."""
        with self._lock:
            if self._holders == 0:
                self._before = torch.get_num_threads()
                torch.set_num_threads(num_threads or default_threads())
                logger.info("torch has %d threads, had %d", torch.get_num_threads(), self._before)
            elif num_threads not in (None, torch.get_num_threads()):
                logger.warning("num_threads=%s: torch stays at %d", num_threads, torch.get_num_threads())
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                torch.set_num_threads(self._before)
                logger.info("torch is back at %d threads", self._before)


def default_threads() -> int:
    """One less than the cores, for the event loop: torch's threads meet at a barrier after each operation, so one
    that must share its core with a busy loop holds all of them up, a thousand times a step."""
    return max(1, num_cores() - 1)


torch_threads = TorchThreads()
