"""A product of a few rows with a small weight: x [M, K] times weight [N, K], with a norm before it and an activation
or an addition after.

Where a layer's weight is a few MB, what costs is not its bytes but the wait for the first of them. Here a program loads
BLOCK_K columns of its rows whole, before the kernel that computes x has ended, and asks for the rest. K is cut into
SLICES that the warps multiply side by side and sum at the end: so few rows of the weight keep a program busy. An RMS
norm is computed by every program for itself, and rounds as transformers' does.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .product import finished, multiplied, prefetch, weight_rows


@triton.jit
def _slices(weight, n, k, K: tl.constexpr, EVEN: tl.constexpr):
    """weight's columns k [SLICES, COLUMNS] of the rows n, as [SLICES, len(n), COLUMNS]."""
    at = weight + n[None, :, None].to(tl.int64) * K + k[:, None, :]
    if EVEN:
        w = tl.load(at, eviction_policy="evict_first")
    else:
        w = tl.load(at, mask=(k < K)[:, None, :], other=0.0, eviction_policy="evict_first")
    return w


@triton.jit
def _rows(x, source, k, K: tl.constexpr, EVEN: tl.constexpr):
    """x's columns k of the rows that start at `source`, as [SLICES, COLUMNS, len(source)]."""
    at = x + source[None, None, :] + k[:, :, None]
    if EVEN:
        y = tl.load(at)
    else:
        y = tl.load(at, mask=(k < K)[:, :, None], other=0.0)
    return y


@triton.jit
def resident(
    x, rows, weight, bias, norm, out, eps, M, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [*, K]: its rows 0..M, or those named by rows [M], M at most ROWS; out [M, N], added to where ADD. `norm` [K]:
    an RMS norm's weight. GATED: weight is [2 * N, K], gates first."""
    EVEN: tl.constexpr = K % BLOCK_K == 0
    COLUMNS: tl.constexpr = BLOCK_K // SLICES
    TILE: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    row = weight_rows(tl.program_id(0), N, BLOCK_N, GATED)
    k = tl.arange(0, SLICES)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if PDL:
        gdc_launch_dependents()
    w = _slices(weight, row, k, K, EVEN)
    if PDL:
        for start in tl.static_range(BLOCK_K, K, BLOCK_K):
            prefetch(weight, row, K, start, BLOCK_K)
        gdc_wait()
    m = tl.arange(0, ROWS)
    source = tl.minimum(m, M - 1)
    if rows is not None:
        source = tl.load(rows + source)
    source = source.to(tl.int64) * K
    rstd = tl.zeros([ROWS], tl.float32)
    if norm is not None:
        for start in tl.static_range(0, K, BLOCK_K):
            wide = _rows(x, source, start + k, K, EVEN).to(tl.float32)
            rstd += tl.sum(tl.sum(wide * wide, 1), 0)
        rstd = tl.rsqrt(rstd / K + eps)
    total = tl.zeros([SLICES, TILE, ROWS], tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        at = start + k
        y = _rows(x, source, at, K, EVEN)
        if norm is not None:
            gain = tl.load(norm + at, mask=at < K, other=0.0)
            normed = (y.to(tl.float32) * rstd[None, None, :]).to(y.dtype)
            y = (normed.to(tl.float32) * gain.to(tl.float32)[:, :, None]).to(y.dtype)
        total = multiplied(w, y, total, PRECISION)
        if start + BLOCK_K < K:
            w = _slices(weight, row, at + BLOCK_K, K, EVEN)
    result = finished(tl.sum(total, 0), row, None, bias, ROWS, BLOCK_N, GATED, ACTIVATION)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = out + m[None, :].to(tl.int64) * N + n[:, None]
    live = (m < M)[None, :] & (n < N)[:, None]
    if ADD:
        result += tl.load(at, mask=live, other=0.0).to(tl.float32)
    tl.store(at, result.to(out.dtype.element_ty), mask=live)
