"""Queries and keys turned to their positions, and keys and values put into their pages, in one launch.

A program takes one token and a few of its heads. A head's two halves are two tiles, so that each thread holds both
elements of the pairs it turns and may write them back in place.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .paging import LayerCache, Rotary

FP8_MAX = tl.constexpr(448.0)


@triton.jit
def quantized(x, scale, dtype: tl.constexpr):
    """x as the pool stores it: divided by the scale and clamped for 8 bits, rounded otherwise."""
    if dtype == tl.float8e4nv:
        x = tl.clamp(x / scale, -FP8_MAX, FP8_MAX)
    return x.to(dtype)


@triton.jit
def paired(heads, valid, HEAD_DIM: tl.constexpr, DIM: tl.constexpr):
    """The elements of heads [N, 1] of pointers, and beside each the one that it turns with: [N, DIM] twice."""
    column = tl.arange(0, DIM)
    partner = (column + HEAD_DIM // 2) % HEAD_DIM
    inside = valid & (column < HEAD_DIM)[None, :]
    x = tl.load(heads + column[None, :], mask=inside, other=0.0)
    return x, tl.load(heads + partner[None, :], mask=inside, other=0.0)


@triton.jit
def turned(x, y, x_weight, y_weight, cosine, sine, eps, HEAD_DIM: tl.constexpr, NORM: tl.constexpr):
    """Heads x [N, DIM] with partners y, normed and turned, in their type."""
    dtype: tl.constexpr = x.dtype
    x = x.to(tl.float32)
    y = y.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        x = ((x * scale).to(dtype).to(tl.float32) * x_weight.to(tl.float32)).to(dtype).to(tl.float32)
        y = ((y * scale).to(dtype).to(tl.float32) * y_weight.to(tl.float32)).to(dtype).to(tl.float32)
    return (x * cosine + y * sine).to(dtype)


@triton.jit(do_not_specialize=["pages_per_row", "idle"])
def rope_write_kernel(
    qkv, slots, positions, cos, sin, norm, eps, tables, pool, k_scale, v_scale,
    token_stride, pages_per_row, idle,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
    NORM: tl.constexpr, KEEP_KEYS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    half = tl.arange(0, HALF)
    slot = tl.load(slots + token)
    position = tl.load(positions + token)
    if slot != idle:
        inside = (heads < Q_HEADS + 2 * KV_HEADS)[:, None] & (half < DIM // 2)[None, :]
        turning = (heads < Q_HEADS + KV_HEADS)[:, None] & inside
        at = qkv + token * token_stride + heads[:, None] * DIM + half[None, :]
        low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(at + DIM // 2, mask=inside, other=0.0).to(tl.float32)
        low_raw, high_raw = low, high
        if NORM:
            square = tl.sum(low * low + high * high, 1) / DIM
            scale = tl.rsqrt(square + eps)[:, None]
            weight = norm + heads[:, None] * DIM + half[None, :]
            dtype = qkv.dtype.element_ty
            low_weight = tl.load(weight, mask=turning, other=0.0).to(tl.float32)
            high_weight = tl.load(weight + DIM // 2, mask=turning, other=0.0).to(tl.float32)
            low = ((low * scale).to(dtype).to(tl.float32) * low_weight).to(dtype).to(tl.float32)
            high = ((high * scale).to(dtype).to(tl.float32) * high_weight).to(dtype).to(tl.float32)
        angle = position.to(tl.int64) * DIM + half
        in_half = half < DIM // 2
        low_cos = tl.load(cos + angle, mask=in_half, other=0.0)[None, :]
        high_cos = tl.load(cos + angle + DIM // 2, mask=in_half, other=0.0)[None, :]
        low_sin = tl.load(sin + angle, mask=in_half, other=0.0)[None, :]
        high_sin = tl.load(sin + angle + DIM // 2, mask=in_half, other=0.0)[None, :]
        low_turned = low * low_cos + high * low_sin
        high_turned = high * high_cos + low * high_sin
        kept = (heads < Q_HEADS + (KV_HEADS if KEEP_KEYS else 0))[:, None] & inside
        tl.store(at, low_turned.to(qkv.dtype.element_ty), mask=kept)
        tl.store(at + DIM // 2, high_turned.to(qkv.dtype.element_ty), mask=kept)

        # The pool's heads follow on the queries': keys first, then values.
        stored = (heads >= Q_HEADS)[:, None] & inside
        page = tl.load(tables + slot.to(tl.int64) * pages_per_row + position // PAGE).to(tl.int64)
        line = ((page * 2 * KV_HEADS + heads - Q_HEADS) * PAGE + position % PAGE) * DIM
        into = pool + line[:, None] + half[None, :]
        divisor = tl.where(heads < Q_HEADS + KV_HEADS, k_scale, v_scale)[:, None]
        stored_type: tl.constexpr = pool.dtype.element_ty
        source_type: tl.constexpr = qkv.dtype.element_ty
        low = tl.where(turning, low_turned.to(source_type).to(tl.float32), low_raw)
        high = tl.where(turning, high_turned.to(source_type).to(tl.float32), high_raw)
        tl.store(into, quantized(low, divisor, stored_type), mask=stored)
        tl.store(into + DIM // 2, quantized(high, divisor, stored_type), mask=stored)


def rope_write(
    qkv: Tensor,
    slots: Tensor,
    positions: Tensor,
    rotary: Rotary,
    cache: LayerCache,
    *,
    keep_keys: bool = False,
) -> None:
    """Turn the queries of qkv [tokens, (q_heads + 2 * kv_heads) * head_dim] in place, and write keys (turned) and
    values into the pages of their `slots` at their `positions`, both [tokens] int32. With `keep_keys`, the turned
    keys replace those in qkv too. Tokens of the idle slot are left alone."""
    q_heads, kv_heads, dim = cache.num_q_heads(qkv), cache.num_kv_heads, cache.head_dim
    half = triton.next_power_of_2(dim // 2)
    per_program = max(1, min(1024 // half, triton.next_power_of_2(q_heads + 2 * kv_heads)))
    grid = (qkv.shape[0], triton.cdiv(q_heads + 2 * kv_heads, per_program))
    rope_write_kernel[grid](
        qkv, slots, positions, rotary.cos, rotary.sin, rotary.norm, rotary.eps,
        cache.tables, cache.pool, cache.k_scale, cache.v_scale,
        qkv.stride(0), cache.tables.stride(0), cache.idle,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, DIM=dim, PAGE=cache.page,
        NORM=rotary.norm is not None, KEEP_KEYS=keep_keys, HEADS=per_program, HALF=half, num_warps=4,
    )  # fmt: skip
