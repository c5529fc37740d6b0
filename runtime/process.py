"""Settings that belong to the whole process: the switch interval, held while any engine is open and put back when the
last one closes, and how torch's threads wait."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL_S = 50e-6
"""How long a thread may keep the interpreter while another asks for it. Python's default of 5 ms makes a step of
several hundred operations wait that long for each one that gave the interpreter up, beside a busy loop."""

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


class OpenMpWaiting:
    """How torch's threads wait for each other at the end of an operation. OpenMP reads the setting once, when torch
    is first imported, so torch must be imported inside `sleeping` for it to hold.

    Spinning threads (the default) keep their cores while they wait. If the event loop or another process needs one of
    those cores, every operation waits for a time slice, and a step takes tens of times longer; sleeping threads lose
    a share of their speed and no more.
    """

    def __init__(self) -> None:
        self.sleeps = os.environ.get(WAIT_POLICY, "").upper() == "PASSIVE"

    @contextmanager
    def sleeping(self) -> Iterator[None]:
        """The environment is put back on the way out. Does nothing if torch is loaded, or the user has chosen."""
        if "torch" in sys.modules or WAIT_POLICY in os.environ:
            yield
            return
        os.environ[WAIT_POLICY] = "PASSIVE"
        try:
            yield
        finally:
            del os.environ[WAIT_POLICY]
        self.sleeps = "torch" in sys.modules
        logger.info("torch's threads sleep while they wait for each other")


openmp_waiting = OpenMpWaiting()
