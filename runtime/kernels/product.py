"""A product of any number of rows: x [M, K] times weight [N, K], with an activation or an addition after it.

The weight is the left operand of the matrix unit and x, a tile of ROWS rows, its right one: so the long side of the
weight fills the unit's 64 rows however few rows x has. Where both have eight bits they are multiplied as they are; what
the unit sums of them loses bits, so its sums of a block of columns are added in fp32. int8 is widened on its way to it.
Launched as a programmatic dependent, a program asks for its first weights before the kernel that computes x has ended.

Where N is too small to keep the card busy the columns are split: each program leaves its part in `parts`, and the one
that arrives last adds the parts up in their order, so the sum does not depend on who arrived last.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activation import activated


@triton.jit
def multiplied(w, y, total, PRECISION: tl.constexpr):
    if PRECISION == "interpreted":  # the interpreter's `dot` knows no bf16
        total += tl.dot(w.to(tl.float32), y.to(tl.float32))
    elif y.dtype.primitive_bitwidth == 8:
        total += tl.dot(w, y)
    else:
        total = tl.dot(w.to(y.dtype), y, total, input_precision=PRECISION)
    return total


@triton.jit
def prefetch(weight, n, K, start, COLUMNS: tl.constexpr):
    """Ask for the first COLUMNS columns of the rows `n`, a 128-byte line for each lane; nothing waits for them."""
    line: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
    column = tl.minimum(start + tl.arange(0, COLUMNS // line) * line, K - 1)
    at = weight + n[:, None].to(tl.int64) * K + column[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _tile(weight, n, k, K, EVEN: tl.constexpr):
    at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    if EVEN:
        w = tl.load(at, eviction_policy="evict_first")
    else:
        w = tl.load(at, mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")
    return w


@triton.jit
def _summed(parts, SPLITS: tl.constexpr, STRIDE):
    total = tl.load(parts, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        total += tl.load(parts + split * STRIDE, cache_modifier=".cg")
    return total


@triton.jit
def weight_rows(block, N, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """The weight's rows behind a block of outputs: BLOCK_N of them, or, where gated, as many gates and then what they
    gate. Past the end the last row stands in."""
    if GATED:
        r = tl.arange(0, 2 * BLOCK_N)
        row = tl.minimum(block * BLOCK_N + r % BLOCK_N, N - 1) + (r // BLOCK_N) * N
    else:
        row = tl.minimum(block * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    return row


@triton.jit
def finished(
    total, row, scale, bias,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The outputs [BLOCK_N, ROWS] of the sums of the weight's rows `row`."""
    if scale is not None:
        total *= tl.load(scale + row)[:, None]
    if bias is not None:
        total += tl.load(bias + row).to(tl.float32)[:, None]
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(total, [2, BLOCK_N, ROWS]), [1, 2, 0]))
        total = activated(gate, ACTIVATION) * up
    elif ACTIVATION is not None:
        total = activated(total, ACTIVATION)
    return total


@triton.jit
def product(
    x, x_scale, weight, scale, bias, out, parts, arrivals, M, N, K,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, EVEN: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [M, K]; out [M, N], added to where ADD. GATED: weight is [2 * N, K], gates first. Grid: blocks of N, blocks of
    M, splits. EVEN: BLOCK_K * SPLITS divides K."""
    TILE: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    block, part = tl.program_id(0), tl.program_id(2)
    row = weight_rows(block, N, BLOCK_N, GATED)
    length = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS) * BLOCK_K
    first = part * length
    if PDL:
        gdc_launch_dependents()
        if PREFETCH > 0:
            prefetch(weight, row, K, first, PREFETCH)
        gdc_wait()
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    own = m % M  # rows that are not there read others': all reading one would queue for its bytes
    source = own.to(tl.int64) * K
    total = tl.zeros([TILE, ROWS], tl.float32)
    for start in range(first, min(first + length, K), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = _tile(weight, row, k, K, EVEN)
        if EVEN:
            y = tl.load(x + source[None, :] + k[:, None])
        else:
            y = tl.load(x + source[None, :] + k[:, None], mask=(k < K)[:, None], other=0.0)
        total = multiplied(w, y, total, PRECISION)
    if SPLITS > 1:
        tile = tl.program_id(1) * tl.num_programs(0) + block
        stride = tl.num_programs(0) * tl.num_programs(1) * TILE * ROWS
        parts += tile * TILE * ROWS + tl.arange(0, TILE)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        tl.store(parts + part * stride, total)
        tl.debug_barrier()
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") != SPLITS - 1:
            return
        tl.store(arrivals + tile, 0)
        total = _summed(parts, SPLITS, stride)
    if x_scale is not None:
        total *= tl.load(x_scale + own)[None, :]
    total = finished(total, row, scale, bias, ROWS, BLOCK_N, GATED, ACTIVATION)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    at = out + m[None, :].to(tl.int64) * N + n[:, None]
    live = (m < M)[None, :] & (n < N)[:, None]
    if ADD:
        total += tl.load(at, mask=live, other=0.0).to(tl.float32)
    tl.store(at, total.to(out.dtype.element_ty), mask=live)
