"""Attention of decode rows, one new token each, over their pages: a layer's rotary positions, write of the new key and
value, attention and combination of its parts in one launch.

A program walks the stretches of its run of the plan (decode_plan.py): the pages of one row and key-value head. A
stretch that lies wholly in the run is written out; of a shared one each program stores a part, and the last to arrive
at the stretch's counter (which it resets) combines them. A program has at most two parts: the stretch that it begins
in, and the one that it ends in.

Launched as a programmatic dependent (with few rows, where that was measured to be faster), a program asks for its first
page before the queries are there: plan, tables and all keys but the new ones were written before an ordinary launch
that came in between.

The program with a stretch's last page also turns the new key, writes key and value into the page, and attends to them
from registers; all others see only keys before the new one, so no program waits for another.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .assembly import fetch_early, page_at, widened
from .decode_plan import PLAN_WORDS, DecodePlan, first_seen
from .dependent import can_depend
from .paging import LayerCache, Rotary
from .processors import num_processors
from .rope_write import paired, quantized, turned
from .workspace import allocated, for_decode_attention, group_rows, most_programs, padded_dim, spread


@triton.jit
def repeated(x, ROWS: tl.constexpr):
    """Each row of x [n, m] ROWS / n times: [ROWS, m]."""
    copies: tl.constexpr = ROWS // x.shape[0]
    return tl.reshape(tl.broadcast_to(x[:, None, :], [x.shape[0], copies, x.shape[1]]), [ROWS, x.shape[1]])


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


@triton.jit(do_not_specialize=["pages_per_row", "idle"])
def decode_attention_kernel(
    qkv, slots, positions, cos, sin, norm, eps, tables, pool, k_scale, v_scale, out,
    plan, parts, stats, arrivals, token_stride, pages_per_row, idle, scale,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, NORM: tl.constexpr,
    GROUP_ROWS: tl.constexpr, TILE_ROWS: tl.constexpr, PARTS: tl.constexpr,
    ASSEMBLY: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = Q_HEADS // KV_HEADS
    COPIES: tl.constexpr = TILE_ROWS // GROUP_ROWS
    SIDE: tl.constexpr = KV_HEADS * PAGE * HEAD_DIM
    COMPUTE: tl.constexpr = qkv.dtype.element_ty
    STORED: tl.constexpr = pool.dtype.element_ty
    # Eight bits are exact in float16, and a card turns them into it in one instruction.
    FACTOR: tl.constexpr = tl.float16 if STORED == tl.float8e4nv else COMPUTE
    if PDL:
        gdc_launch_dependents()
    program = tl.program_id(0)
    entry = plan + program * PLAN_WORDS
    units = tl.load(entry)
    row = tl.load(entry + 1)
    head = tl.load(entry + 2)
    slot = tl.load(entry + 3)
    position = tl.load(entry + 4)
    page = tl.load(entry + 5)
    first = tl.load(entry + 6)
    num_parts = tl.load(entry + 7)
    last_parts = tl.load(entry + 8)
    if ASSEMBLY:
        if units > 0:
            place = page_at(tables + slot.to(tl.int64) * pages_per_row + page, ASSEMBLY).to(tl.int64)
            early = pool + place * 2 * SIDE + head * PAGE * HEAD_DIM
            fetch_early(early, HEAD_DIM, DIM, PAGE)
            fetch_early(early + SIDE, HEAD_DIM, DIM, PAGE)
    if PDL:
        gdc_wait()

    column = tl.arange(0, DIM)
    in_head = column < HEAD_DIM
    tile_row = tl.arange(0, TILE_ROWS)
    group = tl.arange(0, GROUP_ROWS)
    one = tl.zeros([1, 1], tl.int32)
    # A tile holds each query of the group COPIES times; the first counts.
    group_row = tile_row // COPIES
    stored_row = tile_row % COPIES == 0
    in_group = stored_row & (group_row < GROUP)
    key = tl.arange(0, PAGE)
    tile = key[:, None] * HEAD_DIM + column[None, :]
    while units > 0:
        last_page = position // PAGE
        page_end = tl.minimum(page + units, last_page + 1)
        has_last = page_end == last_page + 1
        first_key = first_seen(position, WINDOW)

        token = qkv + row.to(tl.int64) * token_stride
        angle = position.to(tl.int64) * HEAD_DIM
        table = tables + slot.to(tl.int64) * pages_per_row
        # All loads before any arithmetic, so that their latencies pass together.
        q_heads = (head * GROUP + group)[:, None]
        k_head = Q_HEADS + head + one
        in_q = (group < GROUP)[:, None]
        in_k = one == 0
        q, q_partner = paired(token + q_heads * HEAD_DIM, in_q, HEAD_DIM, DIM)
        k_new, k_partner = paired(token + k_head * HEAD_DIM, in_k, HEAD_DIM, DIM)
        v_new = tl.load(
            token + (k_head + KV_HEADS) * HEAD_DIM + column[None, :], mask=in_head[None, :], other=0.0
        )
        cosine = tl.load(cos + angle + column, mask=in_head, other=0.0)[None, :]
        sine = tl.load(sin + angle + column, mask=in_head, other=0.0)[None, :]
        last_place = tl.load(table + last_page).to(tl.int64)
        q_weight, q_partner_weight, k_weight, k_partner_weight = q, q, k_new, k_new
        if NORM:
            q_weight, q_partner_weight = paired(norm + q_heads * HEAD_DIM, in_q, HEAD_DIM, DIM)
            k_weight, k_partner_weight = paired(norm + k_head * HEAD_DIM, in_k, HEAD_DIM, DIM)
        q = turned(q, q_partner, q_weight, q_partner_weight, cosine, sine, eps, HEAD_DIM, NORM)
        k_new = turned(k_new, k_partner, k_weight, k_partner_weight, cosine, sine, eps, HEAD_DIM, NORM)
        k_new = quantized(k_new.to(tl.float32), k_scale, STORED)
        v_new = quantized(v_new.to(tl.float32), v_scale, STORED)
        line = last_place * 2 * SIDE + (head * PAGE + position % PAGE) * HEAD_DIM
        written = (column < tl.where(has_last, HEAD_DIM, 0))[None, :]
        tl.store(pool + line + column[None, :], k_new, mask=written)
        tl.store(pool + line + SIDE + column[None, :], v_new, mask=written)

        # Scores are in units of log2, so that exp2 serves. Weights are summed key by key of a page until the end.
        new_score = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), 1) * scale
        peak = tl.where(has_last, new_score, float("-inf"))
        q = repeated(q, TILE_ROWS).to(FACTOR)
        peak = tl.reshape(repeated(peak[:, None], TILE_ROWS), [TILE_ROWS])
        weights = tl.where(key == tl.where(has_last, 0, PAGE), 1.0, 0.0)[None, :] + tl.zeros(
            [TILE_ROWS, PAGE], tl.float32
        )
        value = tl.where(has_last, v_new.to(tl.float32), 0.0) + tl.zeros([TILE_ROWS, DIM], tl.float32)
        for at in tl.range(page, page_end, num_stages=STAGES):
            place = page_at(table + at, ASSEMBLY).to(tl.int64)
            keys = pool + place * 2 * SIDE + head * PAGE * HEAD_DIM + tile
            seen = (at * PAGE + key < position) & (at * PAGE + key >= first_key)
            inside = seen[:, None] & in_head[None, :]
            k = tl.load(keys, mask=inside, other=0.0)
            v = tl.load(keys + SIDE, mask=inside, other=0.0)
            scores = tl.dot(q, tl.trans(k.to(FACTOR)), input_precision="ieee") * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            shrink = tl.exp2(peak - new_peak)
            chances = tl.exp2(scores - new_peak[:, None])
            weights = weights * shrink[:, None] + chances
            value = tl.dot(
                chances.to(FACTOR), widened(v, FACTOR, ASSEMBLY), value * shrink[:, None], input_precision="ieee"
            )  # fmt: skip
            peak = new_peak
        weight = tl.sum(weights, 1)

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

        # On to the next head, or to the first of the next row that is not idle.
        units -= page_end - page
        if units > 0:
            head += 1
            if head == KV_HEADS:
                head = 0
                row += 1
                slot = tl.load(slots + row)
                while slot == idle:
                    row += 1
                    slot = tl.load(slots + row)
                position = tl.load(positions + row)
            page = first_seen(position, WINDOW) // PAGE
            first = program
            num_parts = tl.where(page + units <= position // PAGE + 1, last_parts, 1)


class DecodeAttention:
    """The launches and what they work in, allocated once for batches of up to `max_rows`; one for all layers, whose
    launches follow each other on one stream. `stored` is the type of the pool, `windows` are those of the model's
    layers (None: none). As many programs run as fill the device's `processors` (None: what it says), or `programs`."""

    def __init__(
        self,
        max_rows: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page: int,
        device: torch.device,
        *,
        stored: torch.dtype,
        windows: Collection[int | None] = (None,),
        processors: int | None = None,
        programs: int | None = None,
    ) -> None:
        self._keys = head_dim, stored.itemsize
        self._programs = programs
        if processors is None:
            processors = 1 if programs else num_processors(device)
        self._processors = processors
        most = programs or most_programs(*self._keys, processors)
        self._plans = {window: DecodePlan(num_kv_heads, page, most, window, device) for window in windows}
        self._group_rows, self._dim = group_rows(num_q_heads, num_kv_heads), padded_dim(head_dim)
        buffers = for_decode_attention(most, max_rows, num_q_heads, num_kv_heads, head_dim)
        self._parts, self._stats, self._arrivals = allocated(buffers, device).values()
        pages_in_flight = 96 * 1024 // (2 * page * self._dim * stored.itemsize)
        self._stages = 3 if pages_in_flight >= 2 else 2
        self._pdl = can_depend(device)

    def plan(self, slots: Tensor, positions: Tensor, idle: int) -> None:
        """Once a step, before its first layer: share out the pages of rows at `positions` of `slots`, both [rows]
        int32; `idle` is the slot of rows that pad. An ordinary launch must come before the first layer's."""
        programs = spread(slots.shape[0], *self._keys).programs
        for plan in self._plans.values():
            plan.fill(slots, positions, idle, self._programs or self._processors * programs)

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
        as it is) into out [rows, q_heads * head_dim], and write the new keys and values into their pages. Slots and
        positions are those of the plan. With `window`, a row sees the last `window` positions, its own among them.
        Rows of the idle slot leave everything as it is, their row of `out` too."""
        plan, how = self._plans[window], spread(qkv.shape[0], *self._keys)
        pdl = self._pdl and how.early
        decode_attention_kernel[(plan.programs,)](
            qkv, slots, positions, rotary.cos, rotary.sin, rotary.norm, rotary.eps,
            cache.tables, cache.pool, cache.k_scale, cache.v_scale, out,
            plan.words, self._parts, self._stats, self._arrivals,
            qkv.stride(0), cache.tables.stride(0), cache.idle, cache.log2_scale,
            Q_HEADS=cache.num_q_heads(qkv), KV_HEADS=cache.num_kv_heads, HEAD_DIM=cache.head_dim, DIM=self._dim,
            PAGE=cache.page, WINDOW=plan.window, NORM=rotary.norm is not None,
            GROUP_ROWS=self._group_rows, TILE_ROWS=max(16, self._group_rows),
            PARTS=max(1, 8192 // (self._group_rows * self._dim)),
            ASSEMBLY=qkv.is_cuda, STAGES=min(self._stages, how.stages), PDL=pdl,
            num_warps=how.warps, launch_pdl=pdl,
        )  # fmt: skip
