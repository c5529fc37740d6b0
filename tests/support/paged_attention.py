"""A layer's pages, tables and rotary tables for attention kernels: every element that nobody owns is NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jitney.runtime.kernels.paging import LayerCache, Rotary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def layer_cache(
    lengths: Sequence[int],
    kv_heads: int,
    head_dim: int,
    *,
    room: int,
    page: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LayerCache:
    """Slot i holds lengths[i] keys and has pages for `room` more; then an idle slot. Pages lie scattered."""
    generator = torch.Generator().manual_seed(seed)
    pages_per_row = -(-(max(lengths) + room) // page)
    num_pages = len(lengths) * pages_per_row + 1
    order = 1 + torch.randperm(num_pages - 1, generator=generator)
    tables = torch.zeros(len(lengths) + 1, pages_per_row, dtype=torch.int32)
    pool = torch.full((num_pages, 2, kv_heads, page, head_dim), float("nan"))
    for slot, length in enumerate(lengths):
        owned = -(-(length + room) // page)
        tables[slot, :owned] = order[slot * pages_per_row :][:owned].int()
        for position in range(length):
            place = pool[tables[slot, position // page], :, :, position % page]
            place.copy_(torch.randn(2, kv_heads, head_dim, generator=generator))
    scales = (0.05, 0.03) if dtype == torch.float8_e4m3fn else (1.0, 1.0)
    for side, scale in enumerate(scales):
        pool[:, side] /= scale
    return LayerCache(pool.to(dtype).to(DEVICE), tables.to(DEVICE), *scales)


def rotary(context: int, head_dim: int, norm_heads: int = 0, dtype: torch.dtype = torch.float32) -> Rotary:
    frequencies = 1.0 / 10000 ** (torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(context)[:, None] * frequencies
    cos = torch.cat([angles.cos(), angles.cos()], 1).to(DEVICE)
    sin = torch.cat([-angles.sin(), angles.sin()], 1).to(DEVICE)
    generator = torch.Generator().manual_seed(7)
    norm = random(generator, norm_heads, head_dim, dtype=dtype) if norm_heads else None
    return Rotary(cos, sin, norm, 1e-6)


def int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def copied(cache: LayerCache) -> LayerCache:
    return LayerCache(cache.pool.clone(), cache.tables, cache.k_scale, cache.v_scale)


def assert_same_pool(ours: LayerCache, reference: LayerCache) -> None:
    """Equal but for the rounding of what was turned; NaN where NaN was."""
    a, b = ours.pool.float(), reference.pool.float()
    assert torch.equal(a.isnan(), b.isnan())
    tolerance = 0.15 if ours.pool.dtype == torch.float8_e4m3fn else 1e-5
    if ours.pool.dtype == torch.bfloat16:
        tolerance = 3e-2
    torch.testing.assert_close(a.nan_to_num(), b.nan_to_num(), rtol=tolerance, atol=tolerance)
