"""Products of many rows and outputs, by a kernel of cuBLASLt's that torch does not take.

torch takes the first that the library proposes, which is the fastest while the card is cool. A card that is kept busy
is held back by its power; then a proposal with other tiles, whose clusters share what they read, is up to a tenth
faster (benchmarks). It is looked for among the proposals; where it is not, torch computes.

Source: NVIDIA's cuBLAS documentation, "Using the cuBLASLt API", and its cublasLt.h. The library counts in columns, so a
matrix of rows is its transpose: out [M, N] = x [M, K] times weight [N, K] transposed is, to it, [N, M] = [K, N]
transposed times [K, M]. torch's handle of cuBLAS is one of cuBLASLt, too.
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
WAVE_TILE = (128, 256)
"""Rows and outputs; a wave is as many of them as the card has processors."""
ALIGNMENT = 256
"""Bytes that the library's proposals take for granted."""

_TILES = (197, 201)
"""CUBLASLT_MATMUL_TILE_168x128 and _176x128, outputs x rows."""
_CLUSTER = 5
"""CUBLASLT_CLUSTER_SHAPE_1x2x1."""
_OPTION = 2
"""Of the algorithm's own: undocumented."""
_MOST_PROPOSALS = 8
_BF16 = 14
"""CUDA_R_16BF."""
_FP32 = 0
"""CUDA_R_32F."""
_COMPUTE_FP32 = 68
"""CUBLAS_COMPUTE_32F."""
_TRANSPOSE_FIRST = 3
"""CUBLASLT_MATMUL_DESC_TRANSA."""
_MOST_WORKSPACE = 1
"""CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES."""
_CONFIG = {"tile": (1, c_uint32), "option": (5, c_uint32), "cluster": (8, c_uint16)}
"""CUBLASLT_ALGO_CONFIG_TILE_ID, _CUSTOM_OPTION and _CLUSTER_SHAPE_ID."""
_REFUSALS = (7, 15)
"""CUBLAS_STATUS_INVALID_VALUE and _NOT_SUPPORTED: nothing was launched."""

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
    """A product's shape as the library describes it, and the kernel that is wanted, if it is to be had."""

    product: c_void_p
    weight: c_void_p
    x: c_void_p
    out: c_void_p
    kernel: _Proposal | None = None


class WideProducts:
    """`library` is cuBLASLt, `workspace` what its kernels may write to: used by one stream of the current device at a
    time. Shapes are described once: there are as many as a ladder has sizes of prompts, and the multiples of 64 rows
    that are launched one by one."""

    def __init__(self, library: Any, workspace: Tensor, processors: int) -> None:
        self._library, self._workspace, self._processors = library, workspace, processors
        self._problems: dict[tuple[int, int, int], _Problem] = {}
        release = weakref.finalize(self, _release, library, self._problems)
        release.atexit = False  # the process gives it back, and the driver may be gone by then

    def computes(self, x: Tensor, weight: Tensor, out: Tensor) -> bool:
        """Whether this is a product for it. Then it has launched out [M, N] = x [M, K] times weight [N, K] transposed.
        Raises `RuntimeError` where the launch fails."""
        if not is_wide(len(x), len(weight), self._processors) or not all(map(_fits, (x, weight, out))):
            return False
        shape = len(x), *weight.shape
        if shape not in self._problems:
            self._problems[shape] = self._described(*shape)
        problem = self._problems[shape]
        if problem.kernel is None:
            return False
        status = self._launched(problem, problem.kernel, x, weight, out)
        if status in _REFUSALS:
            logger.warning("products of %d x %d x %d are torch's: cuBLASLt says %d", *shape, status)
            self._problems[shape] = problem._replace(kernel=None)
        elif status:
            raise RuntimeError(f"cublasLtMatmul: status {status}")
        return not status

    def _launched(self, problem: _Problem, kernel: _Proposal, x: Tensor, weight: Tensor, out: Tensor) -> int:
        at = c_void_p(out.data_ptr())
        status: int = self._library.cublasLtMatmul(
            _handle(), problem.product,
            byref(c_float(1.0)), c_void_p(weight.data_ptr()), problem.weight, c_void_p(x.data_ptr()), problem.x,
            byref(c_float(0.0)), at, problem.out, at, problem.out,
            byref(kernel), c_void_p(self._workspace.data_ptr()), c_size_t(self._workspace.nbytes),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        return status

    def _described(self, num_rows: int, num_outputs: int, num_inputs: int) -> _Problem:
        product = self._made("cublasLtMatmulDescCreate", c_int(_COMPUTE_FP32), c_int(_FP32))
        self._set("cublasLtMatmulDescSetAttribute", product, _TRANSPOSE_FIRST, c_int(1))
        problem = _Problem(
            product,
            self._layout(num_inputs, num_outputs),
            self._layout(num_inputs, num_rows),
            self._layout(num_outputs, num_rows),
        )
        try:
            wanted = filter(self._is_wanted, self._proposals(problem))
            return problem._replace(kernel=next(wanted, None))
        except RuntimeError as error:
            logger.warning(
                "products of %d x %d x %d are torch's: %s", num_rows, num_outputs, num_inputs, error
            )
            return problem

    def _layout(self, height: int, width: int) -> c_void_p:
        sides = c_uint64(height), c_uint64(width), c_int64(height)
        return self._made("cublasLtMatrixLayoutCreate", c_int(_BF16), *sides)

    def _proposals(self, problem: _Problem) -> list[_Proposal]:
        found, count = (_Proposal * _MOST_PROPOSALS)(), c_int()
        limits = self._made("cublasLtMatmulPreferenceCreate")
        try:
            most = c_size_t(self._workspace.nbytes)
            self._set("cublasLtMatmulPreferenceSetAttribute", limits, _MOST_WORKSPACE, most)
            self._call(
                "cublasLtMatmulAlgoGetHeuristic",
                _handle(), *problem[:4], problem.out, limits, c_int(len(found)), found, byref(count),
            )  # fmt: skip
        finally:
            self._library.cublasLtMatmulPreferenceDestroy(limits)
        return [found[i] for i in range(count.value) if found[i].state == 0]

    def _is_wanted(self, proposal: _Proposal) -> bool:
        return (
            self._config(proposal, "tile") in _TILES
            and self._config(proposal, "cluster") == _CLUSTER
            and self._config(proposal, "option") == _OPTION
        )

    def _config(self, proposal: _Proposal, name: str) -> int:
        number, kind = _CONFIG[name]
        value, written = kind(), c_size_t()
        size = c_size_t(ctypes.sizeof(value))
        self._call(
            "cublasLtMatmulAlgoConfigGetAttribute",
            byref(proposal), c_int(number), byref(value), size, byref(written),
        )  # fmt: skip
        return int(value.value)

    def _made(self, name: str, *arguments: Any) -> c_void_p:
        made = c_void_p()
        self._call(name, byref(made), *arguments)
        return made

    def _set(self, name: str, target: c_void_p, attribute: int, value: Any) -> None:
        self._call(name, target, c_int(attribute), byref(value), c_size_t(ctypes.sizeof(value)))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: status {status}")


def wide_products(workspace: Tensor, processors: int) -> WideProducts | None:
    """None where torch's CUDA has no such library, which is said."""
    major = str(torch.version.cuda).partition(".")[0]
    try:
        return WideProducts(ctypes.CDLL(f"libcublasLt.so.{major}"), workspace, processors)
    except OSError as error:
        logger.warning("wide products are torch's choice: %s", error)
        return None


def is_wide(num_rows: int, num_outputs: int, processors: int) -> bool:
    """Enough of both to keep the card's matrix units busy, and so its power at the limit."""
    tiles = (num_rows // WAVE_TILE[0]) * (num_outputs // WAVE_TILE[1])
    return num_rows >= MIN_ROWS and tiles >= MIN_WAVES * processors


def _fits(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0


def _handle() -> c_void_p:
    return c_void_p(torch.cuda.current_blas_handle())


def _release(library: Any, problems: dict[tuple[int, int, int], _Problem]) -> None:
    for problem in problems.values():
        for layout in (problem.weight, problem.x, problem.out):
            library.cublasLtMatrixLayoutDestroy(layout)
        library.cublasLtMatmulDescDestroy(problem.product)
