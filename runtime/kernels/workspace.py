"""What the kernels work in, declared without torch: buffers by name, their shapes and types.

The classes that own these buffers allocate them from here, and the plan of a card's memory counts them: what is said
of a size is what is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from .choice import PARTS, TILES

if TYPE_CHECKING:
    import torch

SCAN_BLOCK, SCAN_PART = 2048, 128
SHORTLISTED = 2048
"""Tokens of a row's short list."""
PASSES = 3
"""Of a search through all logits."""
NUM_PIVOTS = 16
NUM_STATE = 16
"""int64 words of a row's search."""
MOST_TOP, MOST_NAMED = 20, 1024
SCORED = 256
"""Logits that are listed to find the likeliest."""
HISTORY = 1024
"""Last tokens that a slot remembers, by position modulo this."""
MOST_SEQUENCES, MOST_IDS = 4096, 16384
MOST_BIASES = 1024
ROW_WORDS = 20
"""Of what the sampler knows of a slot."""
PLAN_WORDS = 16
"""Of what a program of decode attention is to do."""
FEW_ROWS, EARLY_ROWS = 16, 64

_SIZES = {"int32": 4, "float32": 4, "int64": 8, "bfloat16": 2, "float8_e4m3fn": 1}


class Buffer(NamedTuple):
    shape: tuple[int, ...]
    dtype: str = "int32"

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * _SIZES[self.dtype]


Buffers = Mapping[str, Buffer]


def num_bytes(*many: Buffers) -> int:
    return sum(buffer.num_bytes for buffers in many for buffer in buffers.values())


def allocated(buffers: Buffers, device: torch.device) -> dict[str, torch.Tensor]:
    """Zeros."""
    import torch

    return {
        name: torch.zeros(buffer.shape, dtype=getattr(torch, buffer.dtype), device=device)
        for name, buffer in buffers.items()
    }


class Widths(NamedTuple):
    """Of the widest rows that products take and give, 0 where there are none: `normed` and `activated` go into one,
    `ups` come out and are activated or added, `narrow` go in with eight bits."""

    normed: int = 0
    activated: int = 0
    ups: int = 0
    narrow: int = 0


def for_linears(dtype: str, max_tokens: int, widths: Widths) -> dict[str, Buffer]:
    return {
        "normed": Buffer((max_tokens * widths.normed,), dtype),
        "activated": Buffer((max_tokens * widths.activated,), dtype),
        "ups": Buffer((max_tokens * widths.ups,), dtype),
        "narrow": Buffer((max_tokens * widths.narrow,), "float8_e4m3fn"),
        "scales": Buffer((max_tokens if widths.narrow else 0,), "float32"),
        "parts": Buffer((PARTS,), "float32"),
        "arrivals": Buffer((TILES,)),
    }


def for_sampling(rows: int, vocab: int, block: int, part: int, listed: int) -> dict[str, Buffer]:
    blocks = -(-vocab // block)
    parts = blocks * (block // part)
    return {
        "peaks": Buffer((rows, blocks), "float32"),
        "sums": Buffer((rows, blocks), "float32"),
        "part_peaks": Buffer((rows, parts), "float32"),
        "part_sums": Buffer((rows, parts), "float32"),
        "active": Buffer((rows, parts)),
        "values": Buffer((rows, listed), "float32"),
        "ids": Buffer((rows, listed)),
        "searches": Buffer((1 + PASSES, rows, NUM_STATE), "int64"),
        "measures": Buffer((2, rows, blocks, 2, NUM_PIVOTS), "float32"),
        "tokens": Buffer((rows,)),
        "flags": Buffer((rows,)),
    }


def for_scores(rows: int, vocab: int, block: int, part: int) -> dict[str, Buffer]:
    blocks = -(-vocab // block)
    parts = blocks * (block // part)
    return {
        "peaks": Buffer((rows, blocks), "float32"),
        "sums": Buffer((rows, blocks), "float32"),
        "part_peaks": Buffer((rows, parts), "float32"),
        "active": Buffer((rows, parts)),
        "values": Buffer((rows, SCORED), "float32"),
        "listed": Buffer((rows, SCORED)),
        "own": Buffer((rows,), "float32"),
        "ids": Buffer((rows, MOST_TOP)),
        "top": Buffer((rows, MOST_TOP), "float32"),
        "named": Buffer((rows, MOST_NAMED), "float32"),
    }


def for_slots(num_slots: int, vocab: int) -> dict[str, Buffer]:
    """How rows sample, by slot."""
    return {
        "sampling": Buffer((num_slots, ROW_WORDS)),
        "marks": Buffer((num_slots, vocab)),
        "biases": Buffer((num_slots, MOST_BIASES), "float32"),
        "history": Buffer((num_slots, HISTORY)),
        "sequence_ends": Buffer((num_slots, MOST_SEQUENCES)),
        "sequence_ids": Buffer((num_slots, MOST_IDS)),
        "named": Buffer((num_slots, MOST_NAMED)),
    }


def for_gathered(max_tokens: int, max_rows: int) -> dict[str, Buffer]:
    by_token = {name: Buffer((max_tokens,)) for name in ("ids", "slots", "positions")}
    by_row = {name: Buffer((max_rows,)) for name in ("row_slots", "draw_positions", "chosen")}
    return {**by_token, "spans": Buffer((4, max_rows)), **by_row}


class Spread(NamedTuple):
    """How programs fill a device: how many run on a multiprocessor, their warps, how many pages each has in flight and
    in hand, where there is room, and whether they begin before the kernel before them has ended."""

    programs: int
    warps: int
    stages: int = 3
    early: bool = False


NARROW = ((8, Spread(2, 2)), (16, Spread(1, 8)), (32, Spread(2, 4)), (None, Spread(4, 2, stages=2)))
"""By the most rows, where a head has at most 128 bytes. Measured on an H100: with few rows the parts' combination is
what counts, with some, that a program takes heads of rows whole, with many, the pages that are in flight."""
WIDE = ((FEW_ROWS, Spread(1, 4)), (None, Spread(2, 4)))


def spread(rows: int, head_dim: int, item_bytes: int) -> Spread:
    """For a batch of rows, whose keys have `head_dim` items a head. An early begin costs where heads are wide and rows
    more than few."""
    is_narrow = head_dim * item_bytes <= 128
    found = next(how for most, how in (NARROW if is_narrow else WIDE) if most is None or rows <= most)
    most_early = EARLY_ROWS if is_narrow and head_dim <= 64 else FEW_ROWS
    return found._replace(early=rows <= most_early)


def most_programs(head_dim: int, item_bytes: int, processors: int) -> int:
    """For any number of rows."""
    hows = NARROW if head_dim * item_bytes <= 128 else WIDE
    return processors * max(how.programs for _, how in hows)


def group_rows(num_q_heads: int, num_kv_heads: int) -> int:
    return _power_of_two(num_q_heads // num_kv_heads)


def padded_dim(head_dim: int) -> int:
    return _power_of_two(max(16, head_dim))


def for_decode_attention(
    programs: int, max_rows: int, num_q_heads: int, num_kv_heads: int, head_dim: int
) -> dict[str, Buffer]:
    group = group_rows(num_q_heads, num_kv_heads)
    return {
        "parts": Buffer((2 * programs, group, padded_dim(head_dim)), "float32"),
        "stats": Buffer((2 * programs, 2, group), "float32"),
        "arrivals": Buffer((max_rows, num_kv_heads)),
    }


def for_decode_plan(programs: int) -> dict[str, Buffer]:
    """Of layers with the same window."""
    return {"words": Buffer((programs, PLAN_WORDS))}


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
