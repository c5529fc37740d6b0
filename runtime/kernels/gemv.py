"""A product with one row: x [1, K] times weight [N, K], with a norm before it and an activation or an addition after.

The weights are read once, in order, and nothing else takes time. A program owns BLOCK_N outputs and walks their rows
BLOCK_K columns at a time, a 16-byte load for each thread. The norm costs no pass of its own: the row's squares are
summed while it streams by, and the accumulator is scaled at the end. Launched as a programmatic dependent, a program
has its first weights in flight before the kernel that computes x has ended.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activation import activated


@triton.jit
def _rows(weight, n, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    if K % BLOCK_K == 0:
        w = tl.load(at, eviction_policy="evict_first")
    else:
        w = tl.load(at, mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")
    return w


@triton.jit
def _finish(total, n, scale, bias):
    if scale is not None:
        total *= tl.load(scale + n)
    if bias is not None:
        total += tl.load(bias + n).to(tl.float32)
    return total


@triton.jit
def gemv(
    x, rows, x_scale, weight, scale, bias, norm, out, eps, N,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [*, K], its row 0 or the row named by rows [1]; out [N], added to where ADD. `norm` [K]: an RMS norm's weight.
    GATED: weight is [2 * N, K], gates first. Where x is in eight bits neither is."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(n, N - 1)
    k = tl.arange(0, BLOCK_K)
    if PDL:
        gdc_launch_dependents()
    w = _rows(weight, row, k, K, BLOCK_K)
    if GATED:
        v = _rows(weight, row + N, k, K, BLOCK_K)
    if PDL:
        gdc_wait()
    if rows is not None:
        x += tl.load(rows).to(tl.int64) * K
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    gated = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        at = start + k
        y = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
        if norm is not None:
            squares += y * y
            y *= tl.load(norm + at, mask=at < K, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * y[None, :]
        if GATED:
            gated += v.to(tl.float32) * y[None, :]
        if start + BLOCK_K < K:
            w = _rows(weight, row, at + BLOCK_K, K, BLOCK_K)
            if GATED:
                v = _rows(weight, row + N, at + BLOCK_K, K, BLOCK_K)
    result = tl.sum(total, 1)
    if GATED:
        other = tl.sum(gated, 1)
    if norm is not None:
        rstd = tl.rsqrt(tl.sum(squares) / K + eps)
        result *= rstd
        if GATED:
            other *= rstd
    if x_scale is not None:
        result *= tl.load(x_scale)
    result = _finish(result, row, scale, bias)
    if ACTIVATION is not None:
        result = activated(result, ACTIVATION)
    if GATED:
        result *= _finish(other, row + N, scale, bias)
    if ADD:
        result += tl.load(out + row).to(tl.float32)
    tl.store(out + n, result.to(out.dtype.element_ty), mask=n < N)
