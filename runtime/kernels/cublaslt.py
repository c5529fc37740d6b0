"""cuBLASLt, spoken to directly: torch always takes the first of the kernels that it proposes for a product.

Source: NVIDIA's cuBLAS documentation, "Using the cuBLASLt API". The library counts in columns, so a matrix of rows is
its transpose: out [M, N] = x [M, K] times weight [N, K] transposed is, to it, [N, M] = [K, N] transposed times [K, M].
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST = 8
"""Kernels that it proposes for one product, whatever number is asked for."""
_BF16, _FP32, _SUMS_IN_FP32, _TRANSPOSE_A, _MOST_WORKSPACE, _TRANSPOSED = 14, 0, 68, 3, 1, 1
_NOT_SUPPORTED = 15


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
    """What stays of a product's shape: descriptions, and kernels by rank."""

    product: c_void_p
    weight: c_void_p
    x: c_void_p
    out: c_void_p
    proposals: list[_Proposal]


class CublasLt:
    """On the current device, for bf16 with sums in fp32. `workspace` is what its kernels may write to: used by one
    stream at a time. What it holds of the library's goes with it. Raises `OSError` where torch's CUDA has no such
    library, `RuntimeError` where it does not start."""

    def __init__(self, workspace: Tensor) -> None:
        major = str(torch.version.cuda).partition(".")[0]
        self._library: Any = ctypes.CDLL(f"libcublasLt.so.{major}")
        self._workspace = workspace
        self._handle = c_void_p()
        self._call("cublasLtCreate", byref(self._handle))
        self._problems: dict[tuple[int, int, int], _Problem] = {}
        weakref.finalize(self, _destroyed, self._library, self._handle, self._problems).atexit = False

    def num_proposals(self, num_rows: int, num_outputs: int, num_inputs: int) -> int:
        return len(self._problem(num_rows, num_outputs, num_inputs).proposals)

    def multiply(self, x: Tensor, weight: Tensor, out: Tensor, rank: int, *, add: bool) -> None:
        """out [M, N] (+)= x [M, K] times weight [N, K] transposed, all contiguous, by the kernel of that rank. Raises
        `RuntimeError` where the kernel cannot run, `IndexError` where there is none."""
        problem = self._problem(len(x), *weight.shape)
        at = c_void_p(out.data_ptr())
        self._call(
            "cublasLtMatmul", self._handle, problem.product,
            byref(c_float(1.0)), c_void_p(weight.data_ptr()), problem.weight, c_void_p(x.data_ptr()), problem.x,
            byref(c_float(float(add))), at, problem.out, at, problem.out,
            byref(problem.proposals[rank]), c_void_p(self._workspace.data_ptr()),
            c_size_t(self._workspace.nbytes), c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip

    def _problem(self, num_rows: int, num_outputs: int, num_inputs: int) -> _Problem:
        key = num_rows, num_outputs, num_inputs
        if key not in self._problems:
            self._problems[key] = self._described(*key)
        return self._problems[key]

    def _described(self, num_rows: int, num_outputs: int, num_inputs: int) -> _Problem:
        product = c_void_p()
        self._call("cublasLtMatmulDescCreate", byref(product), c_int(_SUMS_IN_FP32), c_int(_FP32))
        self._set("cublasLtMatmulDescSetAttribute", product, _TRANSPOSE_A, c_int(_TRANSPOSED))
        weight, x, out = (
            self._layout(*sides)
            for sides in ((num_inputs, num_outputs), (num_inputs, num_rows), (num_outputs, num_rows))
        )
        return _Problem(product, weight, x, out, self._proposals(product, weight, x, out))

    def _layout(self, height: int, width: int) -> c_void_p:
        layout = c_void_p()
        self._call(
            "cublasLtMatrixLayoutCreate",
            byref(layout), c_int(_BF16), c_uint64(height), c_uint64(width), c_int64(height),
        )  # fmt: skip
        return layout

    def _proposals(self, product: c_void_p, weight: c_void_p, x: c_void_p, out: c_void_p) -> list[_Proposal]:
        limits, found, count = c_void_p(), (_Proposal * MOST)(), c_int()
        self._call("cublasLtMatmulPreferenceCreate", byref(limits))
        try:
            most = c_size_t(self._workspace.nbytes)
            self._set("cublasLtMatmulPreferenceSetAttribute", limits, _MOST_WORKSPACE, most)
            status = self._library.cublasLtMatmulAlgoGetHeuristic(
                self._handle, product, weight, x, out, out, limits, c_int(MOST), found, byref(count)
            )
        finally:
            self._call("cublasLtMatmulPreferenceDestroy", limits)
        if status not in (0, _NOT_SUPPORTED):
            raise RuntimeError(f"cublasLtMatmulAlgoGetHeuristic: status {status}")
        return [found[i] for i in range(count.value) if found[i].state == 0]

    def _set(self, name: str, target: c_void_p, attribute: int, value: Any) -> None:
        self._call(name, target, c_int(attribute), byref(value), c_size_t(ctypes.sizeof(value)))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: status {status}")


def _destroyed(library: Any, handle: c_void_p, problems: dict[tuple[int, int, int], _Problem]) -> None:
    for problem in problems.values():
        for layout in (problem.weight, problem.x, problem.out):
            library.cublasLtMatrixLayoutDestroy(layout)
        library.cublasLtMatmulDescDestroy(problem.product)
    library.cublasLtDestroy(handle)
