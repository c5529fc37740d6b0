"""Settings that belong to the whole process: the switch interval, held while any engine is open and put back when the
last one closes, and how long torch's threads spin."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import InvalidField

SWITCH_INTERVAL_S = 50e-6
"""How long a thread may keep the interpreter while another asks for it. Python's default of 5 ms makes a step of
several hundred operations wait that long for each one that gave the interpreter up, beside a busy loop."""

SPIN_COUNT = "GOMP_SPINCOUNT"
WAIT_POLICY = "OMP_WAIT_POLICY"

logger = logging.getLogger("jitney")


class SwitchInterval:
    """Reference-counted; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before = 0.0

    def acquire(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, SWITCH_INTERVAL_S))
                logger.info("switch interval %g s, was %g s", sys.getswitchinterval(), self._before)
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                sys.setswitchinterval(self._before)
                logger.info("switch interval back to %g s", self._before)


switch_interval = SwitchInterval()


@contextmanager
def short_spins() -> Iterator[None]:
    """Import torch inside: its OpenMP threads then spin for some tens of microseconds at the end of an operation
    before they sleep. GNU's OpenMP reads the limit once, when it is loaded; the environment is put back on the way
    out. Does nothing if torch is loaded already, or the user has chosen.

    By default they spin for as long as it takes. If the event loop or another process needs one of their cores, each
    operation then waits for a time slice, and a step takes forty times longer instead of four.
    """
    if "torch" in sys.modules or SPIN_COUNT in os.environ or WAIT_POLICY in os.environ:
        yield
        return
    os.environ[SPIN_COUNT] = "20000"
    try:
        yield
    finally:
        del os.environ[SPIN_COUNT]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_card(*, required: bool) -> bool:
    """Whether torch can compute on an NVIDIA card. Raises `InvalidField` where one is required and missing."""
    import torch

    found = torch.cuda.is_available()
    if required and not found:
        raise InvalidField("device", "'auto' or 'cpu': torch finds no NVIDIA card here", "cuda")
    return found
