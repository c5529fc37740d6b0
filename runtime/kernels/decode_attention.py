"""Attention of decode rows, one new token each, over their pages: a layer's rotary positions, write of the new key and
value, attention and combination of its parts in one launch.

The unit of work is one page of one key-value head of one row. Units are numbered row by row, head by head, page by
page, and every program takes an equal run of them, whatever the rows' lengths: a long row is shared by many programs,
a short one is a fraction of one. A program walks the (row, head) stretches in its run. A stretch that lies wholly in
it is written out; of a longer one each program stores a part, and the last to arrive at the stretch's counter (which
it resets) combines them. A program has at most two parts: the stretch that it begins in, and the one that it ends in.

The program with a stretch's last page also turns the new key, writes key and value into the page, and attends to them
from registers; all others see only keys before the new one, so no program waits for another.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .paging import LayerCache, Rotary
from .rope_write import quantized, quantized_reference, turned_reference


@triton.jit
def turned(
    token, heads, valid, norm, eps, cos, sin, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr
):
    """Heads [N] of a token, normed and turned: [N, DIM] in the token's type."""
    column = tl.arange(0, DIM)
    partner = (column + HEAD_DIM // 2) % HEAD_DIM
    in_head = column < HEAD_DIM
    inside = valid[:, None] & in_head[None, :]
    dtype = token.dtype.element_ty
    x = tl.load(token + heads[:, None] * HEAD_DIM + column[None, :], mask=inside, other=0.0).to(tl.float32)
    y = tl.load(token + heads[:, None] * HEAD_DIM + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        x_weight = tl.load(norm + heads[:, None] * HEAD_DIM + column[None, :], mask=inside, other=0.0)
        y_weight = tl.load(norm + heads[:, None] * HEAD_DIM + partner[None, :], mask=inside, other=0.0)
        x = ((x * scale).to(dtype).to(tl.float32) * x_weight.to(tl.float32)).to(dtype).to(tl.float32)
        y = ((y * scale).to(dtype).to(tl.float32) * y_weight.to(tl.float32)).to(dtype).to(tl.float32)
    cosine = tl.load(cos + column, mask=in_head, other=0.0)[None, :]
    sine = tl.load(sin + column, mask=in_head, other=0.0)[None, :]
    return (x * cosine + y * sine).to(dtype)


@triton.jit
def repeated(x, ROWS: tl.constexpr):
    """Each row of x [n, m] ROWS / n times: [ROWS, m]."""
    copies: tl.constexpr = ROWS // x.shape[0]
    return tl.reshape(tl.broadcast_to(x[:, None, :], [x.shape[0], copies, x.shape[1]]), [ROWS, x.shape[1]])


@triton.jit
def owner(unit, share, extra):
    """Which program has a unit: the first `extra` programs have share + 1 each, the others share."""
    in_larger = extra * (share + 1)
    return tl.where(unit < in_larger, unit // (share + 1), extra + (unit - in_larger) // tl.maximum(share, 1))


@triton.jit
def combine(
    parts, stats, first, num_parts,
    GROUP_ROWS: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The stretch's sum of weighted values [GROUP_ROWS, DIM] and of weights [GROUP_ROWS], from programs `first` on."""
    group = tl.arange(0, GROUP_ROWS)
    column = tl.arange(0, DIM)
    peak = tl.full([GROUP_ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([GROUP_ROWS], tl.float32)
    value = tl.zeros([GROUP_ROWS, DIM], tl.float32)
    for at in range(0, num_parts, PARTS):
        part = at + tl.arange(0, PARTS)
        alive = part < num_parts
        place = 2 * (first + part) + (part == 0)
        stat = stats + place[:, None] * 2 * GROUP_ROWS + group[None, :]
        peaks = tl.load(stat, mask=alive[:, None], other=float("-inf"), cache_modifier=".cg")
        weights = tl.load(stat + GROUP_ROWS, mask=alive[:, None], other=0.0, cache_modifier=".cg")
        line = (place[:, None] * GROUP_ROWS + group[None, :]) * DIM
        values = tl.load(
            parts + line[:, :, None] + column[None, None, :],
            mask=alive[:, None, None], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        new_peak = tl.maximum(peak, tl.max(peaks, 0))
        shrink = tl.exp2(peak - new_peak)
        share = tl.exp2(peaks - new_peak[None, :])
        weight = weight * shrink + tl.sum(weights * share, 0)
        value = value * shrink[:, None] + tl.sum(values * share[:, :, None], 0)
        peak = new_peak
    return value, weight


@triton.jit(do_not_specialize=["num_rows", "pages_per_row", "idle"])
def decode_attention_kernel(
    qkv, slots, positions, cos, sin, norm, eps, tables, pool, k_scale, v_scale, out,
    parts, stats, arrivals, num_rows, token_stride, pages_per_row, idle, scale,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, GROUP_ROWS: tl.constexpr, TILE_ROWS: tl.constexpr, PARTS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = Q_HEADS // KV_HEADS
    COPIES: tl.constexpr = TILE_ROWS // GROUP_ROWS
    COMPUTE: tl.constexpr = qkv.dtype.element_ty
    STORED: tl.constexpr = pool.dtype.element_ty
    rows = tl.arange(0, ROWS)
    row_slots = tl.load(slots + rows, mask=rows < num_rows, other=idle)
    row_positions = tl.load(positions + rows, mask=rows < num_rows, other=0)
    row_first = tl.maximum(row_positions + 1 - WINDOW, 0) // PAGE if WINDOW else tl.zeros([ROWS], tl.int32)
    row_pages = tl.where(row_slots != idle, row_positions // PAGE + 1 - row_first, 0)
    row_ends = tl.cumsum(row_pages, 0) * KV_HEADS
    total = tl.max(row_ends, 0)

    program = tl.program_id(0)
    share = total // tl.num_programs(0)
    extra = total % tl.num_programs(0)
    begin = program * share + tl.minimum(program, extra)
    end = begin + share + tl.where(program < extra, 1, 0)

    column = tl.arange(0, DIM)
    in_head = column < HEAD_DIM
    tile_row = tl.arange(0, TILE_ROWS)
    group = tl.arange(0, GROUP_ROWS)
    one = tl.zeros([1], tl.int32)
    # A tile holds each query of the group COPIES times; the first counts.
    group_row = tile_row // COPIES
    stored_row = tile_row % COPIES == 0
    in_group = stored_row & (group_row < GROUP)
    key = tl.arange(0, PAGE)
    tile = key[:, None] * HEAD_DIM + column[None, :]
    unit = begin
    while unit < end:
        row = tl.sum((row_ends <= unit).to(tl.int32), 0)
        row_begin = tl.max(tl.where(row_ends <= unit, row_ends, 0), 0)
        slot = tl.load(slots + row).to(tl.int64)
        position = tl.load(positions + row)
        first_key = tl.maximum(position + 1 - WINDOW, 0) if WINDOW else 0
        first_page = first_key // PAGE
        num_pages = position // PAGE + 1 - first_page
        head = (unit - row_begin) // num_pages
        stretch = row_begin + head * num_pages
        stretch_end = tl.minimum(end, stretch + num_pages)
        page = first_page + unit - stretch
        page_end = first_page + stretch_end - stretch
        has_last = stretch_end == stretch + num_pages

        token = qkv + row.to(tl.int64) * token_stride
        angle = position.to(tl.int64) * HEAD_DIM
        table = tables + slot * pages_per_row
        q = turned(
            token, head * GROUP + group, group < GROUP, norm, eps, cos + angle, sin + angle, HEAD_DIM, DIM, NORM
        )  # fmt: skip
        new_key = turned(
            token, Q_HEADS + head + one, one == 0, norm, eps, cos + angle, sin + angle, HEAD_DIM, DIM, NORM
        )  # fmt: skip
        new_value = tl.load(
            token + (Q_HEADS + KV_HEADS + head) * HEAD_DIM + column[None, :], mask=in_head[None, :], other=0.0
        )  # fmt: skip
        new_key = quantized(new_key.to(tl.float32), k_scale, STORED)
        new_value = quantized(new_value.to(tl.float32), v_scale, STORED)
        last_page = tl.load(table + position // PAGE).to(tl.int64)
        line = ((last_page * 2 * KV_HEADS + head) * PAGE + position % PAGE) * HEAD_DIM
        written = (column < tl.where(has_last, HEAD_DIM, 0))[None, :]
        tl.store(pool + line + column[None, :], new_key, mask=written)
        tl.store(pool + line + KV_HEADS * PAGE * HEAD_DIM + column[None, :], new_value, mask=written)

        # Scores are in units of log2, so that exp2 serves. Weights are summed key by key of a page until the end.
        new_score = tl.sum(q.to(tl.float32) * new_key.to(tl.float32), 1) * scale
        peak = tl.where(has_last, new_score, float("-inf"))
        q = repeated(q, TILE_ROWS)
        peak = tl.reshape(repeated(peak[:, None], TILE_ROWS), [TILE_ROWS])
        weights = tl.where(key == tl.where(has_last, 0, PAGE), 1.0, 0.0)[None, :] + tl.zeros(
            [TILE_ROWS, PAGE], tl.float32
        )
        value = tl.where(has_last, new_value.to(tl.float32), 0.0) + tl.zeros([TILE_ROWS, DIM], tl.float32)
        for at in tl.range(page, page_end, num_stages=STAGES):
            place = tl.load(table + at).to(tl.int64)
            keys = pool + (place * 2 * KV_HEADS + head) * PAGE * HEAD_DIM + tile
            seen = (at * PAGE + key < position) & (at * PAGE + key >= first_key)
            if DIM == HEAD_DIM:
                k = tl.load(keys)
                v = tl.load(keys + KV_HEADS * PAGE * HEAD_DIM, mask=seen[:, None], other=0.0)
            else:
                k = tl.load(keys, mask=in_head[None, :], other=0.0)
                v = tl.load(
                    keys + KV_HEADS * PAGE * HEAD_DIM, mask=seen[:, None] & in_head[None, :], other=0.0
                )  # fmt: skip
            scores = tl.dot(q, tl.trans(k.to(COMPUTE)), input_precision="ieee") * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            shrink = tl.exp2(peak - new_peak)
            chances = tl.exp2(scores - new_peak[:, None])
            weights = weights * shrink[:, None] + chances
            value = tl.dot(
                chances.to(COMPUTE), v.to(COMPUTE), value * shrink[:, None], input_precision="ieee"
            )  # fmt: skip
            peak = new_peak
        weight = tl.sum(weights, 1)

        first = owner(stretch, share, extra)
        num_parts = owner(stretch + num_pages - 1, share, extra) - first + 1
        into = out + row.to(tl.int64) * Q_HEADS * HEAD_DIM + head * GROUP * HEAD_DIM
        if num_parts == 1:
            tl.store(
                into + group_row[:, None] * HEAD_DIM + column[None, :],
                (value / weight[:, None] * v_scale).to(COMPUTE),
                mask=in_group[:, None] & in_head[None, :],
            )
        else:
            mine = 2 * program + (program == first).to(tl.int32)
            tl.store(
                parts + (mine * GROUP_ROWS + group_row[:, None]) * DIM + column[None, :],
                value, mask=stored_row[:, None],
            )  # fmt: skip
            tl.store(stats + mine * 2 * GROUP_ROWS + group_row, peak, mask=stored_row)
            tl.store(stats + (mine * 2 + 1) * GROUP_ROWS + group_row, weight, mask=stored_row)
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + row * KV_HEADS + head, 1, sem="acq_rel")
            if arrived == num_parts - 1:
                tl.store(arrivals + row * KV_HEADS + head, 0)
                sums, weight_sums = combine(parts, stats, first, num_parts, GROUP_ROWS, DIM, PARTS)
                tl.store(
                    into + group[:, None] * HEAD_DIM + column[None, :],
                    (sums / weight_sums[:, None] * v_scale).to(COMPUTE),
                    mask=(group < GROUP)[:, None] & in_head[None, :],
                )
        unit = stretch_end


class DecodeAttention:
    """The launch and what it works in, allocated once for batches of up to `max_rows`; one for all layers, whose
    launches follow each other on one stream. `programs` defaults to what fills the device."""

    def __init__(
        self,
        max_rows: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        *,
        programs: int | None = None,
    ) -> None:
        group_rows = triton.next_power_of_2(num_q_heads // num_kv_heads)
        self._group_rows = group_rows
        self._dim = triton.next_power_of_2(max(16, head_dim))
        self._programs = programs or 2 * torch.cuda.get_device_properties(device).multi_processor_count
        self._parts = torch.zeros(2 * self._programs, group_rows, self._dim, device=device)
        self._stats = torch.zeros(2 * self._programs, 2, group_rows, device=device)
        self._arrivals = torch.zeros(max_rows, num_kv_heads, dtype=torch.int32, device=device)

    def __call__(
        self,
        qkv: Tensor,
        slots: Tensor,
        positions: Tensor,
        rotary: Rotary,
        cache: LayerCache,
        out: Tensor,
        *,
        window: int | None = None,
    ) -> None:
        """Attend from rows of qkv [rows, (q_heads + 2 * kv_heads) * head_dim] (neither normed nor turned yet; left
        as it is) at `positions` of `slots` (both [rows] int32) into out [rows, q_heads * head_dim], and write the
        new keys and values into their pages. With `window`, a row sees the last `window` positions, its own among
        them. Rows of the idle slot leave everything as it is, their row of `out` too."""
        q_heads, kv_heads, dim = cache.num_q_heads(qkv), cache.num_kv_heads, cache.head_dim
        rows = qkv.shape[0]
        decode_attention_kernel[(self._programs,)](
            qkv, slots, positions, rotary.cos, rotary.sin, rotary.norm, rotary.eps,
            cache.tables, cache.pool, cache.k_scale, cache.v_scale, out,
            self._parts, self._stats, self._arrivals,
            rows, qkv.stride(0), cache.tables.stride(0), cache.idle, log2_scale(dim, cache.k_scale),
            Q_HEADS=q_heads, KV_HEADS=kv_heads, HEAD_DIM=dim, DIM=self._dim,
            PAGE=cache.page, WINDOW=window or 0, NORM=rotary.norm is not None,
            ROWS=triton.next_power_of_2(max(rows, 2)), GROUP_ROWS=self._group_rows,
            TILE_ROWS=max(16, self._group_rows), PARTS=max(1, 4096 // (self._group_rows * self._dim)),
            STAGES=5, num_warps=4,
        )  # fmt: skip


def log2_scale(head_dim: int, k_scale: float) -> float:
    """What turns a product with a stored key into a score in units of log2."""
    return k_scale * math.log2(math.e) / math.sqrt(head_dim)


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
    """The same, row by row in plain torch."""
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


def gathered_reference(cache: LayerCache, slot: int, length: int) -> tuple[Tensor, Tensor]:
    """A slot's first keys and values, each [kv_heads, length, head_dim] float32."""
    pages = cache.pool[cache.tables[slot, : -(-length // cache.page)].long()].float()
    keys, values = (x.transpose(0, 1).flatten(1, 2)[:, :length] for x in pages.unbind(1))
    return keys * cache.k_scale, values * cache.v_scale
