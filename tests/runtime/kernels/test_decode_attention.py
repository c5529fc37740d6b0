"""Decode attention against its plain twin: splits, groups, windows, storage types, and what nobody owns."""

from __future__ import annotations

import pytest
import torch
from attention_twins import decode_attention_reference
from paged_attention import DEVICE, assert_same_pool, copied, int32, layer_cache, random, rotary

from jitney.runtime.kernels.decode_attention import DecodeAttention
from jitney.runtime.kernels.paging import LayerCache

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def check(
    lengths: list[int],
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    programs: int = 5,
    page: int = 16,
    window: int | None = None,
    norm: bool = False,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
    rows: list[int] | None = None,
) -> None:
    """Each slot decodes one token after `lengths`; rows name slots in any order, padded with the idle one."""
    cache = layer_cache(lengths, kv_heads, head_dim, room=1, page=page, dtype=stored or dtype)
    slots = int32(rows if rows is not None else [*range(len(lengths)), cache.idle])
    positions = int32([lengths[slot] if slot != cache.idle else 0 for slot in slots.tolist()])
    generator = torch.Generator().manual_seed(1)
    qkv = random(generator, len(slots), (q_heads + 2 * kv_heads) * head_dim, dtype=dtype)
    qkv[slots == cache.idle] = float("nan")
    turn = rotary(max(lengths) + 1, head_dim, q_heads + kv_heads if norm else 0, dtype)
    expected, reference = torch.full_like(qkv[:, : q_heads * head_dim], 7.0), copied(cache)
    decode_attention_reference(qkv, slots, positions, turn, reference, expected, window=window)
    attend = DecodeAttention(
        len(slots), q_heads, kv_heads, head_dim, page, torch.device(DEVICE),
        stored=stored or dtype, windows=[window], programs=programs,
    )  # fmt: skip
    for _ in range(2):
        out, ours = (
            torch.full_like(expected, 7.0),
            LayerCache(cache.pool.clone(), cache.tables, cache.k_scale, cache.v_scale),
        )
        attend.plan(slots, positions, cache.idle)
        attend(qkv, slots, positions, turn, ours, out, window=window)
        torch.testing.assert_close(out, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert_same_pool(ours, reference)


@pytest.mark.parametrize("programs", [1, 3, 8, 40])
def test_rows_of_many_lengths(programs: int) -> None:
    check([0, 1, 15, 16, 17, 100], 4, 2, 16, programs=programs)


@pytest.mark.parametrize(
    "q_heads,kv_heads,head_dim", [(2, 2, 64), (6, 2, 16), (8, 1, 32), (3, 1, 20), (2, 1, 128)]
)
def test_groups_and_head_dims(q_heads: int, kv_heads: int, head_dim: int) -> None:
    check([33, 5], q_heads, kv_heads, head_dim)


@pytest.mark.parametrize("window", [1, 7, 16, 33, 200])
def test_window(window: int) -> None:
    check([0, 5, 16, 47, 130], 4, 2, 16, window=window, programs=7)


def test_norm_of_queries_and_keys() -> None:
    check([20, 3], 4, 2, 32, norm=True)
    check([20, 3], 4, 2, 32, norm=True, dtype=torch.bfloat16)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn])
def test_storage_types(stored: torch.dtype) -> None:
    check([70, 3], 4, 2, 32, dtype=torch.bfloat16, stored=stored)


def test_rows_in_any_order_with_idle_ones_between() -> None:
    check([40, 3, 90], 4, 2, 16, rows=[2, 3, 0, 3, 3, 1])


def test_nothing_to_do() -> None:
    check([4], 4, 2, 16, rows=[1, 1])


def test_the_pool_s_page_size() -> None:
    check([200, 64, 63], 4, 2, 64, page=64, programs=4)
