"""What every process of the suite starts with; `make test` runs several side by side."""

from __future__ import annotations

import gc
import os
import shutil
import signal

import pytest

HAS_CARD = shutil.which("nvidia-smi") is not None
MOST_PROCESSES = 4

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of processes side by side would wait for each other
if not HAS_CARD:  # Triton kernels run in Triton's interpreter; it is chosen before any is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: a process a core; one where there is a card, whose memory the tests measure."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if HAS_CARD else min(cores, MOST_PROCESSES)


def pytest_collection_finish() -> None:
    """What has been imported stays for good: no later collection looks at it, which would take most of a second."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """The interpreter ends as it would: libraries complain of what was not taken down."""
    gc.unfreeze()
