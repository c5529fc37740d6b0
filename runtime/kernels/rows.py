"""The first and the last launch of a pass: who computes what, and what came of it.

`gather` turns slots into tokens: decode rows first, each with its slot's last token, then the tokens of the chunks.
`publish` gives each sampled token back to its slot and writes it to the ring that the host reads. Between the two
stands the model; nothing in it knows of slots but attention.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .workspace import allocated, for_gathered

RING = 16
"""Passes whose results the host may leave unread: a power of two."""
_BLOCK = 256


class Slotwise(NamedTuple):
    """Per-slot state, int32: positions, last_tokens [slots]; rows [most rows], prompt [most tokens], chunks [5, C]
    (slot, start, offset, count, slot if it samples), counter [1] of passes. `idle`: the slot of padding."""

    positions: Tensor
    last_tokens: Tensor
    rows: Tensor
    prompt: Tensor
    chunks: Tensor
    counter: Tensor
    idle: int


class Gathered(NamedTuple):
    """int32. By token: ids, slots, positions [T]. By span of a slot's tokens, D decode rows then C chunks, spans
    [4, D + C]: slot, first position, first token, count. By sampled row: row_slots, draw_positions, chosen [D + C]
    (where its draw is keyed, and which token's hidden state it has)."""

    ids: Tensor
    slots: Tensor
    positions: Tensor
    spans: Tensor
    row_slots: Tensor
    draw_positions: Tensor
    chosen: Tensor


def gathered(max_tokens: int, max_rows: int, device: torch.device) -> Gathered:
    """Buffers for the largest pass."""
    return Gathered(**allocated(for_gathered(max_tokens, max_rows), device))


@triton.jit(do_not_specialize=["idle", "num_rows", "num_tokens", "num_chunks"])
def _gather(
    positions, last_tokens, rows, prompt, chunks, counter,
    ids, slots, token_positions, spans, row_slots, draw_positions, chosen,
    idle, num_rows, num_tokens, num_chunks, chunk_stride, span_stride,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    decodes = i < num_rows
    slot = tl.load(rows + i, mask=decodes, other=0)
    token = tl.load(last_tokens + slot, mask=decodes, other=0)
    position = tl.load(positions + slot, mask=decodes, other=0)
    if num_chunks > 0:
        j = i - num_rows
        c = tl.arange(0, CHUNKS)
        offsets = tl.load(chunks + 2 * chunk_stride + c, mask=c < num_chunks, other=2147483647)
        index = tl.sum((offsets[None, :] <= j[:, None]).to(tl.int32), axis=1) - 1
        index = tl.maximum(index, 0)
        at = j - tl.load(chunks + 2 * chunk_stride + index)
        inside = (i < num_tokens) & (j >= 0) & (at < tl.load(chunks + 3 * chunk_stride + index))
        slot = tl.where(decodes, slot, tl.where(inside, tl.load(chunks + index), idle))
        position = tl.where(
            decodes, position, tl.where(inside, tl.load(chunks + chunk_stride + index) + at, 0)
        )
        token = tl.where(decodes, token, tl.load(prompt + j, mask=inside, other=0))
    mask = i < num_tokens
    tl.store(ids + i, token, mask=mask)
    tl.store(slots + i, slot, mask=mask)
    tl.store(token_positions + i, position, mask=mask)
    if tl.program_id(0) == 0:
        tl.atomic_add(counter, 1)
        r = tl.arange(0, ROWS)
        is_row = r < num_rows
        is_chunk = (r >= num_rows) & (r < num_rows + num_chunks)
        c = tl.maximum(r - num_rows, 0)
        row = tl.load(rows + r, mask=is_row, other=idle)
        next_position = tl.load(positions + row, mask=is_row, other=0)
        start = tl.load(chunks + chunk_stride + c, mask=is_chunk, other=0)
        offset = tl.load(chunks + 2 * chunk_stride + c, mask=is_chunk, other=0)
        count = tl.load(chunks + 3 * chunk_stride + c, mask=is_chunk, other=0)
        live = is_row | is_chunk
        tl.store(spans + r, tl.where(is_row, row, tl.load(chunks + c, mask=is_chunk, other=idle)), mask=live)
        tl.store(spans + span_stride + r, tl.where(is_row, next_position, start), mask=live)
        tl.store(spans + 2 * span_stride + r, tl.where(is_row, r, num_rows + offset), mask=live)
        tl.store(spans + 3 * span_stride + r, tl.where(is_row, 1, count), mask=live)
        sampled = tl.load(chunks + 4 * chunk_stride + c, mask=is_chunk, other=idle)
        tl.store(row_slots + r, tl.where(is_row, row, sampled), mask=live)
        tl.store(draw_positions + r, tl.where(is_row, next_position + 1, start + count), mask=live)
        last = tl.maximum(num_rows + offset + count - 1, 0)
        tl.store(chosen + r, tl.where(is_row, r, tl.minimum(last, num_tokens - 1)), mask=live)


def gather(state: Slotwise, out: Gathered, num_rows: int, num_tokens: int, num_chunks: int) -> None:
    """Fill `out` for a pass of `num_rows` decode rows and `num_tokens` tokens in all, padding included."""
    run = gather_by_kernel if state.rows.is_cuda else gather_naive
    run(state, out, num_rows, num_tokens, num_chunks)


def gather_by_kernel(state: Slotwise, out: Gathered, num_rows: int, num_tokens: int, num_chunks: int) -> None:
    _gather[(triton.cdiv(num_tokens, _BLOCK),)](
        *state[:6], *out, state.idle, num_rows, num_tokens, num_chunks, state.chunks.stride(0), out.spans.stride(0),
        CHUNKS=triton.next_power_of_2(state.chunks.shape[1]),
        ROWS=triton.next_power_of_2(num_rows + num_chunks), BLOCK=_BLOCK,
    )  # fmt: skip


def gather_naive(state: Slotwise, out: Gathered, num_rows: int, num_tokens: int, num_chunks: int) -> None:
    state.counter.add_(1)
    rows = state.rows[:num_rows].long()
    out.ids[:num_tokens], out.slots[:num_tokens], out.positions[:num_tokens] = 0, state.idle, 0
    out.ids[:num_rows] = state.last_tokens[rows]
    out.slots[:num_rows] = state.rows[:num_rows]
    out.positions[:num_rows] = state.positions[rows]
    slots, starts, offsets, counts, sampled = (row[:num_chunks] for row in state.chunks)
    for slot, start, offset, count in zip(
        slots.tolist(), starts.tolist(), offsets.tolist(), counts.tolist(), strict=True
    ):
        at = slice(num_rows + offset, num_rows + offset + count)
        out.ids[at] = state.prompt[offset : offset + count]
        out.slots[at] = slot
        out.positions[at] = torch.arange(start, start + count, dtype=torch.int32)
    end = num_rows + num_chunks
    index = torch.arange(num_rows, dtype=torch.int32)
    decoding = torch.stack([out.slots[:num_rows], out.positions[:num_rows], index, torch.ones_like(index)])
    out.spans[:, :end] = torch.cat([decoding, torch.stack([slots, starts, offsets + num_rows, counts])], 1)
    out.row_slots[:end] = torch.cat([out.slots[:num_rows], sampled])
    out.draw_positions[:end] = out.spans[1, :end] + out.spans[3, :end]
    last = out.spans[2, :end] + out.spans[3, :end] - 1
    out.chosen[:end] = last.clamp(0, num_tokens - 1)


@triton.jit(do_not_specialize=["idle", "num_rows"])
def _publish(
    tokens, flags, row_slots, draw_positions, positions, last_tokens, counter, ring,
    idle, num_rows, ring_stride, flag_stride, RING: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, ROWS)
    mask = r < num_rows
    slot = tl.load(row_slots + r, mask=mask, other=idle)
    token = tl.load(tokens + r, mask=mask, other=0)
    live = mask & (slot != idle)
    tl.store(last_tokens + slot, token, mask=live)
    tl.store(positions + slot, tl.load(draw_positions + r, mask=mask, other=0), mask=live)
    entry = ring + ((tl.load(counter) - 1) & (RING - 1)) * ring_stride  # past 2**31 passes too
    tl.store(entry + r, token, mask=mask)
    tl.store(entry + flag_stride + r, tl.load(flags + r, mask=mask, other=0), mask=mask)


def publish(
    tokens: Tensor, flags: Tensor, out: Gathered, state: Slotwise, ring: Tensor, num_rows: int
) -> None:
    """tokens, flags [rows] int32, as sampled; ring [RING, 2, most rows] int32, pinned. `num_rows`: sampled rows."""
    run = publish_by_kernel if tokens.is_cuda else publish_naive
    run(tokens, flags, out, state, ring, num_rows)


def publish_by_kernel(
    tokens: Tensor, flags: Tensor, out: Gathered, state: Slotwise, ring: Tensor, num_rows: int
) -> None:
    _publish[(1,)](
        tokens, flags, out.row_slots, out.draw_positions, state.positions, state.last_tokens, state.counter, ring,
        state.idle, num_rows, ring.stride(0), ring.stride(1), RING=RING, ROWS=triton.next_power_of_2(num_rows),
    )  # fmt: skip


def publish_naive(
    tokens: Tensor, flags: Tensor, out: Gathered, state: Slotwise, ring: Tensor, num_rows: int
) -> None:
    slots = out.row_slots[:num_rows].long()
    live = slots != state.idle
    state.last_tokens[slots[live]] = tokens[:num_rows][live]
    state.positions[slots[live]] = out.draw_positions[:num_rows][live]
    entry = ring[(int(state.counter) - 1) % RING]
    entry[0, :num_rows] = tokens[:num_rows]
    entry[1, :num_rows] = flags[:num_rows]
