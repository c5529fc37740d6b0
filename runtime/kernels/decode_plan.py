"""Which part of a step's decode attention each program does: computed once a step, followed by every layer.

The pages of one row and key-value head are a stretch. Stretches are laid end to end, row by row and head by head, each
as long as its pages and, where there are more stretches than programs, one more for what a program does before the
first page. Every program takes an equal length of the whole, whatever the rows' lengths: a long row is shared by many
programs, a short one is a fraction of one. A program's run may hold several stretches; the first and the last of them
may be shared with other programs. Where rows are of about one length, every program takes as many whole stretches
instead: that no part is left to be combined is worth about a page.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import workspace

PLAN_WORDS = tl.constexpr(workspace.PLAN_WORDS)


@triton.jit
def first_seen(position, WINDOW: tl.constexpr):
    """The first key that a row at a position sees."""
    return tl.maximum(position + 1 - WINDOW, 0) if WINDOW else position * 0


@triton.jit
def owner(unit, share, extra):
    """Which program has a unit: the first `extra` programs have share + 1 each, the others share."""
    in_larger = extra * (share + 1)
    return tl.where(unit < in_larger, unit // (share + 1), extra + (unit - in_larger) // tl.maximum(share, 1))


@triton.jit
def beginning(stretch, row_lengths, row_ends, rows_before, KV_HEADS: tl.constexpr):
    """Where a stretch begins, by its number; the end of all where there is none. `rows_before` counts the rows that
    are not idle up to each and with it."""
    row = tl.sum((rows_before * KV_HEADS <= stretch).to(tl.int32), 0)
    its = tl.arange(0, rows_before.shape[0]) == row
    left = tl.sum(tl.where(its, rows_before * KV_HEADS - stretch, 0), 0)
    begins = tl.sum(tl.where(its, row_ends - left * row_lengths, 0), 0)
    return tl.where(tl.sum(its.to(tl.int32), 0) == 0, tl.max(row_ends, 0), begins)


@triton.jit(do_not_specialize=["num_rows", "idle"])
def decode_plan_kernel(
    slots, positions, plan, num_rows, idle,
    KV_HEADS: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr, LEAD: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, ROWS)
    row_slots = tl.load(slots + rows, mask=rows < num_rows, other=idle)
    row_positions = tl.load(positions + rows, mask=rows < num_rows, other=0)
    row_first = first_seen(row_positions, WINDOW) // PAGE
    row_lengths = tl.where(row_slots != idle, row_positions // PAGE + 1 - row_first + LEAD, 0)
    row_ends = tl.cumsum(row_lengths, 0) * KV_HEADS
    total = tl.max(row_ends, 0)

    program = tl.program_id(0)
    share = total // tl.num_programs(0)
    extra = total % tl.num_programs(0)
    begin = program * share + tl.minimum(program, extra)
    end = begin + share + tl.where(program < extra, 1, 0)
    rows_before = tl.cumsum((row_lengths > 0).to(tl.int32), 0)
    each = tl.cdiv(tl.max(rows_before, 0) * KV_HEADS, tl.num_programs(0))
    is_whole = each * tl.max(row_lengths, 0) <= share + share // 32 + 2
    if is_whole:
        begin = beginning(program * each, row_lengths, row_ends, rows_before, KV_HEADS)
        end = beginning((program + 1) * each, row_lengths, row_ends, rows_before, KV_HEADS)
    entry = plan + program * PLAN_WORDS
    units = 0
    if begin < end:
        row = tl.sum((row_ends <= begin).to(tl.int32), 0)
        row_begin = tl.max(tl.where(row_ends <= begin, row_ends, 0), 0)
        slot = tl.load(slots + row)
        position = tl.load(positions + row)
        first_page = first_seen(position, WINDOW) // PAGE
        length = position // PAGE + 1 - first_page + LEAD
        head = (begin - row_begin) // length
        stretch = row_begin + head * length
        page = first_page + tl.maximum(begin - stretch - LEAD, 0)
        first = owner(stretch + LEAD, share, extra)

        last_row = tl.sum((row_ends < end).to(tl.int32), 0)
        last_begin = tl.max(tl.where(row_ends < end, row_ends, 0), 0)
        last_position = tl.load(positions + last_row)
        last_length = last_position // PAGE + 1 - first_seen(last_position, WINDOW) // PAGE + LEAD
        last_head = (end - 1 - last_begin) // last_length
        last_stretch = last_begin + last_head * last_length

        # The run's pages: its length less the leads in it, of all stretches but the first and of what it has of that.
        idle_rows = tl.sum(((row_lengths == 0) & (rows > row) & (rows < last_row)).to(tl.int32), 0)
        later = (last_row - row - idle_rows) * KV_HEADS + last_head - head
        leads = later * LEAD + tl.minimum(end - last_stretch, LEAD) - tl.minimum(begin - stretch, LEAD)
        units = end - begin - leads
        tl.store(entry + 1, row)
        tl.store(entry + 2, head)
        tl.store(entry + 3, slot)
        tl.store(entry + 4, position)
        tl.store(entry + 5, page)
        tl.store(entry + 6, tl.where(is_whole, program, first))
        parts = owner(stretch + length - 1, share, extra) + 1 - first
        tl.store(entry + 7, tl.where(is_whole, 1, parts))
        last_parts = owner(last_stretch + last_length - 1, share, extra) + 1 - program
        tl.store(entry + 8, tl.where(is_whole or end - last_stretch <= LEAD, 1, last_parts))
    tl.store(entry, units)


class DecodePlan:
    """The plan of one kind of layer: those with the same `window`. Its tensor stays where it is.

    Words of a program: pages; row, head, slot, position and first page of its first stretch; the first program and the
    number of programs of that stretch; the number of those of its last stretch, where that begins with it.
    """

    def __init__(
        self, num_kv_heads: int, page: int, programs: int, window: int | None, device: torch.device
    ) -> None:
        self.window = window or 0
        self._page = page
        self.words = workspace.allocated(workspace.for_decode_plan(programs), device)["words"]
        self._num_kv_heads = num_kv_heads

    def fill(self, slots: Tensor, positions: Tensor, idle: int, programs: int) -> None:
        """Share out the pages of rows at `positions` of `slots` (both [rows] int32) among the first `programs`."""
        self.programs = programs
        decode_plan_kernel[(programs,)](
            slots, positions, self.words, slots.shape[0], idle,
            KV_HEADS=self._num_kv_heads, PAGE=self._page, WINDOW=self.window,
            ROWS=triton.next_power_of_2(max(slots.shape[0], 16)),
            LEAD=int(slots.shape[0] * self._num_kv_heads > programs), num_warps=4,
        )  # fmt: skip
