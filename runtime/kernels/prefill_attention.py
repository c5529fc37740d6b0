"""Attention of chunks of prompts over their pages: causal, several query heads of a key-value head in one tile.

A program takes a tile of a chunk's tokens for one key-value head: its rows are (token, query head) pairs. It walks
the keys in blocks of one page, which begin at multiples of the page from position 0, whatever the chunk, so that a
row's result depends on nothing but its own keys. Blocks that some row sees only in part are masked, those between
are not. Which tile of which chunk a program has follows from the chunks' counts on the device; the grid is large
enough for any counts, and programs past the last tile end at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .paging import Chunks, LayerCache


@triton.jit
def attend(
    q, query, value, weight, peak, pool, table, head, begin, end, low, high, scale,
    KV_HEADS: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Take in the keys of pages [begin, end) of a row's table. Keys outside [low, high) may be anything."""
    key = tl.arange(0, PAGE)
    for at in tl.range(begin, end, num_stages=STAGES):
        place = tl.load(table + at)
        line = (place * 2 * KV_HEADS + head) * PAGE
        k = pool.load([line, 0]).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            position = at * PAGE + key
            seen = position[None, :] <= query[:, None]
            if WINDOW:
                seen &= position[None, :] > query[:, None] - WINDOW
            scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        base = new_peak
        if MASKED and WINDOW:
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        shrink = tl.exp2(peak - base)
        chances = tl.exp2(scores * scale - base[:, None])
        weight = weight * shrink + tl.sum(chances, 1)
        value = value * shrink[:, None]
        v = pool.load([line + KV_HEADS * PAGE, 0]).to(q.dtype)
        if MASKED:
            position = at * PAGE + key
            v = tl.where(((position >= low) & (position < high))[:, None], v, 0.0)
        value = tl.dot(chances.to(q.dtype), v, value, input_precision="ieee")
        peak = new_peak
    return value, weight, peak


@triton.jit(do_not_specialize=["num_chunks", "pages_per_row"])
def prefill_attention_kernel(
    qkv, pool, tables, chunk_slots, chunk_starts, chunk_offsets, chunk_counts, out,
    num_chunks, token_stride, pages_per_row, scale, v_scale,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, CHUNKS: tl.constexpr, TILE: tl.constexpr,
    FP8: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = Q_HEADS // KV_HEADS
    TOKENS: tl.constexpr = TILE // GROUP
    # Eight bits are exact in float16, and a card turns them into it in one instruction.
    FACTOR: tl.constexpr = tl.float16 if FP8 else qkv.dtype.element_ty
    chunks = tl.arange(0, CHUNKS)
    counts = tl.load(chunk_counts + chunks, mask=chunks < num_chunks, other=0)
    tile_ends = tl.cumsum((counts + TOKENS - 1) // TOKENS, 0)
    tile = tl.max(tile_ends, 0) - 1 - tl.program_id(1)
    if tile >= 0:
        head = tl.program_id(0)
        chunk = tl.sum((tile_ends <= tile).to(tl.int32), 0)
        skipped = (tile - tl.max(tl.where(tile_ends <= tile, tile_ends, 0), 0)) * TOKENS
        count = tl.load(chunk_counts + chunk)
        start = tl.load(chunk_starts + chunk)
        offset = tl.load(chunk_offsets + chunk).to(tl.int64)
        table = tables + tl.load(chunk_slots + chunk).to(tl.int64) * pages_per_row

        row = tl.arange(0, TILE)
        token = skipped + row // GROUP
        query = start + token
        column = tl.arange(0, DIM)
        inside = ((token < count) & (row < TOKENS * GROUP))[:, None] & (column < HEAD_DIM)[None, :]
        q_head = head * GROUP + row % GROUP
        source = (offset + token) * token_stride + q_head * HEAD_DIM
        q = tl.load(qkv + source[:, None] + column[None, :], mask=inside, other=0.0).to(FACTOR)

        # Pages [lead, whole) hold keys before some row's window, [whole, ragged) are seen whole by every row, and
        # [ragged, end) hold keys after some row.
        high = start + tl.minimum(skipped + TOKENS, count)
        end = tl.cdiv(high, PAGE)
        ragged = (start + skipped + 1) // PAGE
        low = 0
        lead = 0
        if WINDOW:
            low = tl.maximum(start + skipped + 1 - WINDOW, 0)
            lead = low // PAGE
        value = tl.zeros([TILE, DIM], tl.float32)
        weight = tl.zeros([TILE], tl.float32)
        peak = tl.full([TILE], float("-inf"), tl.float32)
        whole = lead
        if WINDOW:
            whole = tl.minimum(tl.cdiv(tl.maximum(high - WINDOW, 0), PAGE), ragged)
            whole = tl.maximum(whole, lead)
            value, weight, peak = attend(
                q, query, value, weight, peak, pool, table, head, lead, whole, low, high, scale,
                KV_HEADS, PAGE, WINDOW, True, STAGES,
            )  # fmt: skip
        value, weight, peak = attend(
            q, query, value, weight, peak, pool, table, head, whole, ragged, low, high, scale,
            KV_HEADS, PAGE, WINDOW, False, STAGES,
        )  # fmt: skip
        value, weight, peak = attend(
            q, query, value, weight, peak, pool, table, head, tl.maximum(ragged, whole), end, low, high, scale,
            KV_HEADS, PAGE, WINDOW, True, STAGES,
        )  # fmt: skip
        into = (offset + token) * Q_HEADS * HEAD_DIM + q_head * HEAD_DIM
        value = value / tl.where(weight == 0.0, 1.0, weight)[:, None] * v_scale
        tl.store(out + into[:, None] + column[None, :], value.to(qkv.dtype.element_ty), mask=inside)


def prefill_attention(
    qkv: Tensor, chunks: Chunks, cache: LayerCache, out: Tensor, *, window: int | None = None
) -> None:
    """Attend from the queries of qkv [tokens, (q_heads + 2 * kv_heads) * head_dim], turned by `rope_write` already,
    over the keys and values in their slots' pages (the chunks' own among them), into out [tokens, q_heads * head_dim].
    With `window`, a token sees the last `window` positions, its own among them. Rows outside the chunks stay."""
    q_heads, kv_heads, dim = cache.num_q_heads(qkv), cache.num_kv_heads, cache.head_dim
    padded = triton.next_power_of_2(max(16, dim))
    tile, stages, warps = tiling(padded, qkv)
    tile = max(tile, triton.next_power_of_2(q_heads // kv_heads))
    num_chunks = chunks.counts.shape[0]
    num_tiles = triton.cdiv(qkv.shape[0], tile // (q_heads // kv_heads)) + num_chunks
    lines = TensorDescriptor.from_tensor(cache.pool.view(-1, dim), [cache.page, padded])
    prefill_attention_kernel[(kv_heads, num_tiles)](
        qkv, lines, cache.tables, chunks.slots, chunks.starts, chunks.offsets, chunks.counts, out,
        num_chunks, qkv.stride(0), cache.tables.stride(0), cache.log2_scale, cache.v_scale,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, HEAD_DIM=dim, DIM=padded, PAGE=cache.page, WINDOW=window or 0,
        CHUNKS=triton.next_power_of_2(max(num_chunks, 2)), TILE=tile,
        FP8=cache.pool.dtype == torch.float8_e4m3fn, STAGES=stages, num_warps=warps,
    )  # fmt: skip


def tiling(dim: int, qkv: Tensor) -> tuple[int, int, int]:
    """Rows of a tile, pipeline stages and warps. Measured on an H100: 64 rows and 4 warps at head dim 128, where two
    programs share a multiprocessor, and 128 rows at 64. The number of tokens has no say: see the paragraph above."""
    if qkv.dtype == torch.float32:
        return 16, 2, 4
    rows = 64 if dim > 64 else 128
    if qkv.is_cuda and torch.cuda.get_device_capability(qkv.device) < (9, 0):
        return rows, 2, 8
    return (rows, 5, 4) if dim <= 128 else (rows, 3, 8)
