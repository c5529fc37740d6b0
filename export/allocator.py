"""How the process's allocator treats what is freed, so that an export's memory is what it holds, not what it held."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD (mallopt(3))."""
LARGE_BYTES = 64 * 2**10


def give_back_large_blocks() -> None:
    """From now on blocks of 64 KiB and more go back to the system when they are freed. glibc otherwise learns to keep
    blocks of up to 32 MB, and a hundred MB of them lie about while tensors of many sizes come and go. For a process of
    our own: it changes the whole of it. Does nothing where the C library is another."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
