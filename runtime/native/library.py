"""The compiled kernels: found, looked over, and loaded; or why not.

They are built when jitney is installed where there is a compiler for them, and need none afterwards.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import msgspec

from ..extension import Signatures, built, declared
from .records import BatchRecord, ModelRecord

FLAGS = frozenset("fma avx512f avx512bw avx512dq avx512vl avx512_bf16 amx_tile amx_bf16 amx_int8".split())
"""What the processor must have, as Linux names it: what setup.py compiles for."""
PROCESSOR = Path("/proc/cpuinfo")

SIGNATURES: Signatures = {
    "tiles": (c_int, []),
    "pack": (None, [c_void_p, c_int64, c_int64, c_void_p]),
    "open": (c_void_p, [POINTER(ModelRecord), c_int]),
    "close": (None, [c_void_p]),
    "forward": (c_int, [c_void_p, POINTER(BatchRecord)]),
    "logits": (c_int, [c_void_p, c_void_p, c_int64, c_void_p]),
}


class Library(msgspec.Struct, frozen=True):
    """`kernels` is None where torch computes instead; `reason` says why."""

    kernels: ctypes.CDLL | None
    reason: str = ""


@cache
def library() -> Library:
    """The same for the whole process."""
    missing = sorted(FLAGS - processor_flags())
    if missing:
        return Library(None, f"the processor has no {', '.join(missing)}")
    path = built(Path(__file__).parent, "kernels")
    if path is None:
        return Library(None, "they were not built: no C compiler for them when jitney was installed")
    try:
        kernels = declared(ctypes.CDLL(str(path)), "jitney", SIGNATURES)
    except (OSError, AttributeError) as error:
        return Library(None, f"{path}: {error}")
    if not kernels.jitney_tiles():
        return Library(None, "the system does not let this process use the processor's tiles")
    return Library(kernels)


def processor_flags() -> frozenset[str]:
    try:
        lines = PROCESSOR.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
