"""Settings that belong to the whole process, held while any engine is open and put back when the last one closes."""

from __future__ import annotations

import logging
import sys
import threading

SWITCH_INTERVAL_S = 50e-6
"""How long a thread may keep the interpreter while another asks for it. Python's default of 5 ms makes a step of
several hundred operations wait that long for each one that gave the interpreter up, beside a busy loop."""

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
