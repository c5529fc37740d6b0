"""Which part of a step's decode attention each program does: computed once a step, followed by every layer.

The unit of work is one page of one key-value head of one row. Units are numbered row by row, head by head, page by
page, and every program takes an equal run of them, whatever the rows' lengths: a long row is shared by many programs,
a short one is a fraction of one. The pages of one row and head are a stretch; a run may hold several, and the first
and the last of them may be shared with other programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PLAN_WORDS = tl.constexpr(16)


@triton.jit
def first_seen(position, WINDOW: tl.constexpr):
    """The first key that a row at a position sees."""
    return tl.maximum(position + 1 - WINDOW, 0) if WINDOW else position * 0


@triton.jit
def owner(unit, share, extra):
    """Which program has a unit: the first `extra` programs have share + 1 each, the others share."""
    in_larger = extra * (share + 1)
    return tl.where(unit < in_larger, unit // (share + 1), extra + (unit - in_larger) // tl.maximum(share, 1))


@triton.jit(do_not_specialize=["num_rows", "pages_per_row", "idle"])
def decode_plan_kernel(
    slots, positions, tables, plan, num_rows, pages_per_row, idle,
    KV_HEADS: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, ROWS)
    row_slots = tl.load(slots + rows, mask=rows < num_rows, other=idle)
    row_positions = tl.load(positions + rows, mask=rows < num_rows, other=0)
    row_first = first_seen(row_positions, WINDOW) // PAGE
    row_pages = tl.where(row_slots != idle, row_positions // PAGE + 1 - row_first, 0)
    row_ends = tl.cumsum(row_pages, 0) * KV_HEADS
    total = tl.max(row_ends, 0)

    program = tl.program_id(0)
    share = total // tl.num_programs(0)
    extra = total % tl.num_programs(0)
    begin = program * share + tl.minimum(program, extra)
    end = begin + share + tl.where(program < extra, 1, 0)
    entry = plan + program * PLAN_WORDS
    tl.store(entry, end - begin)
    if begin < end:
        row = tl.sum((row_ends <= begin).to(tl.int32), 0)
        row_begin = tl.max(tl.where(row_ends <= begin, row_ends, 0), 0)
        slot = tl.load(slots + row)
        position = tl.load(positions + row)
        first_page = first_seen(position, WINDOW) // PAGE
        num_pages = position // PAGE + 1 - first_page
        head = (begin - row_begin) // num_pages
        stretch = row_begin + head * num_pages
        page = first_page + begin - stretch
        first = owner(stretch, share, extra)

        last_row = tl.sum((row_ends < end).to(tl.int32), 0)
        last_begin = tl.max(tl.where(row_ends < end, row_ends, 0), 0)
        last_position = tl.load(positions + last_row)
        last_pages = last_position // PAGE + 1 - first_seen(last_position, WINDOW) // PAGE
        last_stretch = last_begin + (end - 1 - last_begin) // last_pages * last_pages
        tl.store(entry + 1, row)
        tl.store(entry + 2, head)
        tl.store(entry + 3, slot)
        tl.store(entry + 4, position)
        tl.store(entry + 5, page)
        tl.store(entry + 6, tl.load(tables + slot.to(tl.int64) * pages_per_row + page))
        tl.store(entry + 7, first)
        tl.store(entry + 8, owner(stretch + num_pages - 1, share, extra) + 1 - first)
        tl.store(entry + 9, owner(last_stretch + last_pages - 1, share, extra) + 1 - program)


class DecodePlan:
    """The plan of one kind of layer: those with the same `window`. Its tensor stays where it is.

    Words of a program: units; row, head, slot, position and first page of its first stretch, and where that page
    lies; the first program and the number of programs of its first stretch; the number of those of its last stretch,
    where that begins with it.
    """

    def __init__(
        self, num_kv_heads: int, page: int, programs: int, window: int | None, device: torch.device
    ) -> None:
        self.window = window or 0
        self.page = page
        self.words = torch.zeros(programs, PLAN_WORDS.value, dtype=torch.int32, device=device)
        self.programs = programs
        self._num_kv_heads = num_kv_heads

    def fill(self, slots: Tensor, positions: Tensor, tables: Tensor, programs: int | None = None) -> None:
        """Share out the pages of rows at `positions` of `slots` (both [rows] int32) among the first `programs`."""
        self.programs = programs or self.words.shape[0]
        decode_plan_kernel[(self.programs,)](
            slots, positions, tables, self.words, slots.shape[0], tables.stride(0), tables.shape[0] - 1,
            KV_HEADS=self._num_kv_heads, PAGE=self.page, WINDOW=self.window,
            ROWS=triton.next_power_of_2(max(slots.shape[0], 16)), num_warps=4,
        )  # fmt: skip
