"""torch's thread count belongs to the whole process: set while the first step is open, restored by the last."""

from __future__ import annotations

import logging
import os
import threading

import torch

_log = logging.getLogger("jitney")
_lock = threading.Lock()
_holders = 0
_before = 0


def acquire_threads(num_threads: int | None) -> None:
    """Set the count, or the default for this machine. While another step holds it, the count stays as it is."""
    global _holders, _before
    with _lock:
        if _holders == 0:
            _before = torch.get_num_threads()
            count = num_threads or default_threads()
            torch.set_num_threads(count)
            _log.info("torch uses %d threads in this process (it had %d)", count, _before)
        elif num_threads not in (None, torch.get_num_threads()):
            _log.warning("num_threads=%s is not applied: another engine holds torch at %d", num_threads, torch.get_num_threads())
        _holders += 1


def release_threads() -> None:
    global _holders
    with _lock:
        _holders -= 1
        if _holders == 0:
            torch.set_num_threads(_before)
            _log.info("torch is back at %d threads", _before)


def default_threads() -> int:
    """All cores up to four, for there a core given up costs a quarter of the speed or more; then one less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores <= 4 else cores - 1
