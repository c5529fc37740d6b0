"""Products of many rows and outputs, by a kernel of cuBLASLt's that torch does not take.

torch takes the first that the library proposes, which is the fastest while the card is cool. A card that is kept busy
is held back by its power; then a proposal with another tile, whose clusters share what they read, is up to a tenth
faster (benchmarks), though slower at full clock. It is asked for by name.

Source: NVIDIA's cuBLAS documentation, "Using the cuBLASLt API", and its cublasLt.h. The library counts in columns, so a
matrix of rows is its transpose: out [M, N] = x [M, K] times weight [N, K] transposed is, to it, [N, M] = [K, N]
transposed times [K, M].
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

MIN_ROWS = 1024
MIN_WAVES = 2.5
"""Tiles of outputs for each of the card's processors."""
TILE = (128, 256)
_THRIFTY = {"tile": (197, 201), "option": (2,), "cluster": (5,)}
"""What tells the kernel from others. The numbers of tiles are the library's own secret; the cluster is 1 x 2."""
_MOST_PROPOSALS = 8
_BF16, _FP32, _SUMS_IN_FP32, _TRANSPOSE_WEIGHT, _MOST_WORKSPACE, _NOT_SUPPORTED = 14, 0, 68, 3, 1, 15
_ATTRIBUTES = {"tile": (1, c_uint32), "option": (5, c_uint32), "cluster": (8, c_uint16)}

logger = logging.getLogger("jitney")


class _Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; stands for its first field, the kernel."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class _Problem(NamedTuple):
    """A product's shape as the library describes it; `kernel` None where the one that is wanted is not proposed."""

    product: c_void_p
    weight: c_void_p
    x: c_void_p
    out: c_void_p
    kernel: _Proposal | None


class WideProducts:
    """On the current device, for bf16 with sums in fp32. `workspace` is what its kernels may write to: used by one
    stream at a time. What it holds of the library's goes with it. Raises `OSError` where torch's CUDA has no such
    library, `RuntimeError` where it does not start."""

    def __init__(self, workspace: Tensor, processors: int) -> None:
        major = str(torch.version.cuda).partition(".")[0]
        self._library: Any = ctypes.CDLL(f"libcublasLt.so.{major}")
        self._workspace, self._processors = workspace, processors
        self._handle = c_void_p()
        self._call("cublasLtCreate", byref(self._handle))
        self._problems: dict[tuple[int, int, int], _Problem] = {}
        weakref.finalize(self, _destroyed, self._library, self._handle, self._problems).atexit = False

    def computes(self, x: Tensor, weight: Tensor, out: Tensor) -> bool:
        """Whether this is a product for it. Then it has launched out [M, N] = x [M, K] times weight [N, K] transposed,
        all contiguous. Raises `RuntimeError` where the library refuses."""
        if not is_wide(len(x), len(weight), self._processors):
            return False
        problem = self._problem(len(x), *weight.shape)
        if problem.kernel is None:
            return False
        at = c_void_p(out.data_ptr())
        self._call(
            "cublasLtMatmul", self._handle, problem.product,
            byref(c_float(1.0)), c_void_p(weight.data_ptr()), problem.weight, c_void_p(x.data_ptr()), problem.x,
            byref(c_float(0.0)), at, problem.out, at, problem.out,
            byref(problem.kernel), c_void_p(self._workspace.data_ptr()), c_size_t(self._workspace.nbytes),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        return True

    def _problem(self, num_rows: int, num_outputs: int, num_inputs: int) -> _Problem:
        key = num_rows, num_outputs, num_inputs
        if key not in self._problems:
            product = c_void_p()
            self._call("cublasLtMatmulDescCreate", byref(product), c_int(_SUMS_IN_FP32), c_int(_FP32))
            self._set("cublasLtMatmulDescSetAttribute", product, _TRANSPOSE_WEIGHT, c_int(1))
            weight, x, out = (
                self._layout(*sides)
                for sides in ((num_inputs, num_outputs), (num_inputs, num_rows), (num_outputs, num_rows))
            )
            kernel = self._thrifty(product, weight, x, out)
            self._problems[key] = _Problem(product, weight, x, out, kernel)
        return self._problems[key]

    def _layout(self, height: int, width: int) -> c_void_p:
        layout = c_void_p()
        self._call(
            "cublasLtMatrixLayoutCreate",
            byref(layout), c_int(_BF16), c_uint64(height), c_uint64(width), c_int64(height),
        )  # fmt: skip
        return layout

    def _thrifty(self, product: c_void_p, weight: c_void_p, x: c_void_p, out: c_void_p) -> _Proposal | None:
        limits, found, count = c_void_p(), (_Proposal * _MOST_PROPOSALS)(), c_int()
        self._call("cublasLtMatmulPreferenceCreate", byref(limits))
        try:
            most = c_size_t(self._workspace.nbytes)
            self._set("cublasLtMatmulPreferenceSetAttribute", limits, _MOST_WORKSPACE, most)
            status = self._library.cublasLtMatmulAlgoGetHeuristic(
                self._handle, product, weight, x, out, out, limits, c_int(len(found)), found, byref(count)
            )
        finally:
            self._call("cublasLtMatmulPreferenceDestroy", limits)
        if status not in (0, _NOT_SUPPORTED):
            raise RuntimeError(f"cublasLtMatmulAlgoGetHeuristic: status {status}")
        able = [found[i] for i in range(count.value) if found[i].state == 0]
        return next((proposal for proposal in able if self._is_thrifty(proposal)), None)

    def _is_thrifty(self, proposal: _Proposal) -> bool:
        return all(self._attribute(proposal, name) in wanted for name, wanted in _THRIFTY.items())

    def _attribute(self, proposal: _Proposal, name: str) -> int:
        number, kind = _ATTRIBUTES[name]
        value, written = kind(), c_size_t()
        self._call(
            "cublasLtMatmulAlgoConfigGetAttribute",
            byref(proposal), c_int(number), byref(value), c_size_t(ctypes.sizeof(value)), byref(written),
        )  # fmt: skip
        return int(value.value)

    def _set(self, name: str, target: c_void_p, attribute: int, value: Any) -> None:
        self._call(name, target, c_int(attribute), byref(value), c_size_t(ctypes.sizeof(value)))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: status {status}")


def wide_products(workspace: Tensor, processors: int) -> WideProducts | None:
    """None where the library is not at hand, which is said."""
    try:
        return WideProducts(workspace, processors)
    except (OSError, RuntimeError) as error:
        logger.warning("wide products are torch's choice: %s", error)
        return None


def is_wide(num_rows: int, num_outputs: int, processors: int) -> bool:
    """Enough of both to keep the card's matrix units busy, and so its power at the limit."""
    tiles = (num_rows // TILE[0]) * (num_outputs // TILE[1])
    return num_rows >= MIN_ROWS and tiles >= MIN_WAVES * processors


def _destroyed(library: Any, handle: c_void_p, problems: dict[tuple[int, int, int], _Problem]) -> None:
    for problem in problems.values():
        for layout in (problem.weight, problem.x, problem.out):
            library.cublasLtMatrixLayoutDestroy(layout)
        library.cublasLtMatmulDescDestroy(problem.product)
    library.cublasLtDestroy(handle)
