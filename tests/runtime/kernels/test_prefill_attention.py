"""Prefill attention against its plain twin: chunk boundaries, windows, storage types, and independence."""

from __future__ import annotations

import pytest
import torch
from attention_twins import prefill_attention_reference
from paged_attention import int32, layer_cache, random
from torch import Tensor

from jitney.runtime.kernels.paging import Chunks, LayerCache
from jitney.runtime.kernels.prefill_attention import prefill_attention

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def chunks_of(spans: list[tuple[int, int, int, int]]) -> Chunks:
    """From (slot, start, offset, count)."""
    return Chunks(*(int32(column) for column in zip(*spans, strict=True)))


def check(
    spans: list[tuple[int, int, int, int]],
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    *,
    page: int = 16,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
) -> None:
    num_slots = 1 + max(slot for slot, *_ in spans)
    lengths = [
        max([start + count for at, start, _, count in spans if at == slot], default=0)
        for slot in range(num_slots)
    ]
    cache = layer_cache(lengths, kv_heads, head_dim, room=0, page=page, dtype=stored or dtype)
    tokens = max(offset + count for *_, offset, count in spans) + 3
    qkv = random(torch.Generator().manual_seed(2), tokens, (q_heads + 2 * kv_heads) * head_dim, dtype=dtype)
    chunks = chunks_of([*spans, (num_slots, 0, 0, 0)])
    expected = torch.full_like(qkv[:, : q_heads * head_dim], 7.0)
    out = expected.clone()
    prefill_attention_reference(qkv, chunks, cache, expected, window=window)
    prefill_attention(qkv, chunks, cache, out, window=window)
    torch.testing.assert_close(out, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_chunks_of_several_slots() -> None:
    check([(0, 0, 0, 40), (2, 17, 40, 1), (1, 5, 44, 90), (2, 18, 134, 30)])


@pytest.mark.parametrize("start", [0, 15, 16, 17, 63, 64, 100])
def test_chunk_starts(start: int) -> None:
    check([(0, start, 0, 70)])


@pytest.mark.parametrize("window", [1, 15, 16, 17, 40, 500])
def test_window(window: int) -> None:
    check([(0, 0, 0, 80), (1, 50, 80, 75)], window=window)


@pytest.mark.parametrize(
    "q_heads,kv_heads,head_dim", [(2, 2, 64), (6, 2, 16), (8, 1, 32), (3, 1, 40), (2, 1, 128)]
)
def test_groups_and_head_dims(q_heads: int, kv_heads: int, head_dim: int) -> None:
    check([(0, 3, 0, 50)], q_heads, kv_heads, head_dim)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn])
def test_storage_types(stored: torch.dtype) -> None:
    check([(0, 10, 0, 60)], head_dim=32, dtype=torch.bfloat16, stored=stored)


def test_the_pool_s_page_size() -> None:
    check([(0, 70, 0, 200), (1, 0, 200, 64)], head_dim=64, page=64)


def without_others(cache: LayerCache) -> LayerCache:
    """The cache as it is before a later chunk: keys from position 40 on are not there yet."""
    pool = cache.pool.clone()
    for position in range(40, 100):
        pool[cache.tables[0, position // cache.page], :, :, position % cache.page] = float("nan")
    return LayerCache(pool, cache.tables)


@pytest.mark.parametrize("window", [None, 30])
def test_a_row_does_not_depend_on_how_its_prompt_is_cut(window: int | None) -> None:
    cache = layer_cache([100, 20], 2, 16, room=0)
    qkv = random(torch.Generator().manual_seed(3), 120, 128)

    def attended(cache: LayerCache, *spans: tuple[int, int, int, int]) -> Tensor:
        out = torch.zeros(120, 64, device=qkv.device)
        prefill_attention(qkv, chunks_of(list(spans)), cache, out, window=window)
        return out

    whole = attended(cache, (0, 0, 0, 100))
    assert torch.equal(attended(without_others(cache), (0, 0, 0, 40))[:40], whole[:40])
    assert torch.equal(attended(cache, (0, 40, 40, 60), (1, 0, 100, 20))[40:100], whole[40:100])
    last = attended(cache, (1, 0, 100, 20), (0, 99, 99, 1))[99]
    if qkv.is_cuda:
        assert torch.equal(last, whole[99])
    else:  # numpy's products stand for the card's, and on some processors sum a row by its place in the tile
        torch.testing.assert_close(last, whole[99], rtol=1e-5, atol=1e-6)
