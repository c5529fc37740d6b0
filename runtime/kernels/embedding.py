"""The first step of a forward pass: each token's row of the embedding table."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _embedding(tokens, table, positions, position_table, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    y = tl.load(table + tl.load(tokens + row).to(tl.int64) * WIDTH + at, mask=inside)
    if positions is not None:
        learned = tl.load(position_table + tl.load(positions + row).to(tl.int64) * WIDTH + at, mask=inside)
        y = (y.to(tl.float32) + learned.to(tl.float32)).to(y.dtype)
    tl.store(out + row * WIDTH + at, y, mask=inside)


def embedding(
    tokens: Tensor,
    table: Tensor,
    out: Tensor,
    positions: Tensor | None = None,
    position_table: Tensor | None = None,
) -> None:
    """tokens [T] int32 or int64, table [V, H]; out [T, H]. With learned positions their rows are added."""
    width = table.size(1)
    block = min(1024, triton.next_power_of_2(width))
    if tokens.size(0):
        grid = (tokens.size(0), triton.cdiv(width, block))
        _embedding[grid](tokens, table, positions, position_table, out, width, block)


def embedding_reference(
    tokens: Tensor, table: Tensor, positions: Tensor | None = None, position_table: Tensor | None = None
) -> Tensor:
    """The naive twin of `embedding`."""
    x = table.index_select(0, tokens)
    if positions is not None and position_table is not None:
        x = x + position_table.index_select(0, positions)
    return x
