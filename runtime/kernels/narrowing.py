"""A product with one row of eight bits that no launch has narrowed before: x [1, K] times weight [N, K], with a norm
before it and an activation or an addition after.

A program narrows the row for itself, whole and in registers. So there are few programs, each with many tiles of the
weight: the first is in flight before the kernel that computes x has ended, the next while one is multiplied. A row that
comes narrow already, with `x_scale`, stays as it is.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activation import activated
from .narrow import in_eight_bits


@triton.jit
def _tile(weight, n, inside, K: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    return tl.load(at, mask=inside[:, None] & (k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _finished(w, y, n, inside, by, scale, bias):
    total = tl.sum(w.to(tl.float32) * y[None, :], 1) * by
    total *= tl.load(scale + n, mask=inside, other=0.0)
    if bias is not None:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def narrowing(
    x, rows, x_scale, weight, scale, bias, norm, out, eps, N,
    K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [*, K], its row 0 or the row named by rows [1]; weight e4m3; out [N], added to where ADD. `norm` [K]: an RMS
    norm's weight. GATED: weight is [2 * N, K], gates first. BLOCK: a power of two, K or more."""
    k = tl.arange(0, BLOCK)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if PDL:
        gdc_launch_dependents()
    w = _tile(weight, n, n < N, K, BLOCK)
    if GATED:
        v = _tile(weight, n + N, n < N, K, BLOCK)
    if norm is not None:
        gain = tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    if rows is not None:
        x += tl.load(rows).to(tl.int64) * K
    y = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
    if norm is not None:
        y *= tl.rsqrt(tl.sum(y * y) / K + eps)
        y = (y.to(x.dtype.element_ty).to(tl.float32) * gain).to(x.dtype.element_ty).to(tl.float32)
    if x_scale is None:
        y, by = in_eight_bits(y)
        y = y.to(weight.dtype.element_ty).to(tl.float32)
    else:
        by = tl.load(x_scale)
    for start in range(tl.program_id(0) * BLOCK_N, N, tl.num_programs(0) * BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        ahead = n + tl.num_programs(0) * BLOCK_N
        next_w = _tile(weight, ahead, ahead < N, K, BLOCK)
        if GATED:
            next_v = _tile(weight, ahead + N, ahead < N, K, BLOCK)
        result = _finished(w, y, n, n < N, by, scale, bias)
        w = next_w
        if ACTIVATION is not None:
            result = activated(result, ACTIVATION)
        if GATED:
            result *= _finished(v, y, n + N, n < N, by, scale, bias)
            v = next_v
        if ADD:
            result += tl.load(out + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(out + n, result.to(out.dtype.element_ty), mask=n < N)
