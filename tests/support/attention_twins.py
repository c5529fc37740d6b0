"""Attention over pages, and the writing of keys and values into them, in plain torch: the kernels' naive twins."""

from __future__ import annotations

import torch
from torch import Tensor

from jitney.runtime.kernels.paging import Chunks, LayerCache, Rotary


def rope_write_reference(
    qkv: Tensor,
    slots: Tensor,
    positions: Tensor,
    rotary: Rotary,
    cache: LayerCache,
    *,
    keep_keys: bool = False,
) -> None:
    """`rope_write`, token by token."""
    q_heads, kv_heads, dim = cache.num_q_heads(qkv), cache.num_kv_heads, cache.head_dim
    for token, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        if slot == cache.idle:
            continue
        heads = qkv[token].view(-1, dim)
        turning = heads[: q_heads + kv_heads]
        turned = turned_reference(turning, position, rotary)
        page = int(cache.tables[slot, position // cache.page])
        place = cache.pool[page, :, :, position % cache.page]
        place[0] = quantized_reference(turned[q_heads:], cache.k_scale, cache.pool.dtype)
        place[1] = quantized_reference(heads[q_heads + kv_heads :], cache.v_scale, cache.pool.dtype)
        turning[: q_heads + (kv_heads if keep_keys else 0)] = turned[
            : q_heads + (kv_heads if keep_keys else 0)
        ]


def turned_reference(x: Tensor, position: int, rotary: Rotary) -> Tensor:
    """Heads x [q_heads + kv_heads, head_dim], normed and turned to a position."""
    if rotary.norm is not None:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + rotary.eps)
        x = wide.to(x.dtype) * rotary.norm
    partner = x.float().roll(x.shape[-1] // 2, -1)
    return (x.float() * rotary.cos[position] + partner * rotary.sin[position]).to(x.dtype)


def quantized_reference(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float8_e4m3fn:
        return (x.float() / scale).clamp(-448.0, 448.0).to(dtype)
    return x.to(dtype)


def decode_attention_reference(
    qkv: Tensor,
    slots: Tensor,
    positions: Tensor,
    rotary: Rotary,
    cache: LayerCache,
    out: Tensor,
    *,
    window: int | None = None,
) -> None:
    """`DecodeAttention`, row by row."""
    q_heads, kv_heads, dim, page = cache.num_q_heads(qkv), cache.num_kv_heads, cache.head_dim, cache.page
    for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        if slot == cache.idle:
            continue
        heads = qkv[row].view(-1, dim)
        turned_heads = turned_reference(heads[: q_heads + kv_heads], position, rotary)
        place = cache.pool[int(cache.tables[slot, position // page]), :, :, position % page]
        place[0] = quantized_reference(turned_heads[q_heads:], cache.k_scale, cache.pool.dtype)
        place[1] = quantized_reference(heads[q_heads + kv_heads :], cache.v_scale, cache.pool.dtype)
        first = max(0, position + 1 - window) if window else 0
        keys, values = gathered_reference(cache, slot, position + 1)
        group = q_heads // kv_heads
        q = turned_heads[:q_heads].float().view(kv_heads, group, dim)
        scores = q @ keys[:, first:].transpose(1, 2) * dim**-0.5
        out[row] = (scores.softmax(-1) @ values[:, first:]).reshape(-1).to(out.dtype)


def prefill_attention_reference(
    qkv: Tensor, chunks: Chunks, cache: LayerCache, out: Tensor, *, window: int | None = None
) -> None:
    """`prefill_attention`, token by token."""
    q_heads, kv_heads, dim = cache.num_q_heads(qkv), cache.num_kv_heads, cache.head_dim
    rows = zip(
        *(x.tolist() for x in (chunks.slots, chunks.starts, chunks.offsets, chunks.counts)), strict=True
    )
    for slot, start, offset, count in rows:
        keys, values = gathered_reference(cache, slot, start + count)
        for token in range(count):
            end = start + token + 1
            first = max(0, end - window) if window else 0
            q = qkv[offset + token, : q_heads * dim].float().view(kv_heads, -1, dim)
            scores = q @ keys[:, first:end].transpose(1, 2) * dim**-0.5
            out[offset + token] = (scores.softmax(-1) @ values[:, first:end]).reshape(-1).to(out.dtype)


def gathered_reference(cache: LayerCache, slot: int, length: int) -> tuple[Tensor, Tensor]:
    """A slot's first keys and values, each [kv_heads, length, head_dim] float32."""
    pages = cache.pool[cache.tables[slot, : -(-length // cache.page)].long()].float()
    keys, values = (x.transpose(0, 1).flatten(1, 2)[:, :length] for x in pages.unbind(1))
    return keys * cache.k_scale, values * cache.v_scale
