"""Turning queries and keys and writing pages, against the plain twin."""

from __future__ import annotations

import pytest
import torch
from attention_twins import rope_write_reference
from paged_attention import assert_same_pool, copied, int32, layer_cache, random, rotary

from jitney.runtime.kernels.rope_write import rope_write


def check(
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    norm: bool = False,
    keep_keys: bool = False,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
) -> None:
    cache = layer_cache([30, 7], kv_heads, head_dim, room=8, dtype=stored or dtype)
    slots, positions = int32([0, 0, 0, 1, cache.idle, 1]), int32([30, 31, 32, 7, 0, 8])
    generator = torch.Generator().manual_seed(4)
    qkv = random(generator, 6, (q_heads + 2 * kv_heads) * head_dim, dtype=dtype)
    qkv[4] = float("nan")
    turn = rotary(40, head_dim, q_heads + kv_heads if norm else 0, dtype)
    expected, reference = qkv.clone(), copied(cache)
    rope_write_reference(expected, slots, positions, turn, reference, keep_keys=keep_keys)
    rope_write(qkv, slots, positions, turn, cache, keep_keys=keep_keys)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(qkv, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert_same_pool(cache, reference)


@pytest.mark.parametrize("keep_keys", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("q_heads,kv_heads,head_dim", [(4, 2, 16), (2, 2, 64), (9, 3, 20), (16, 8, 128)])
def test_shapes(q_heads: int, kv_heads: int, head_dim: int, norm: bool, keep_keys: bool) -> None:
    check(q_heads, kv_heads, head_dim, norm=norm, keep_keys=keep_keys)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn])
def test_storage_types(stored: torch.dtype) -> None:
    check(4, 2, 32, norm=True, dtype=torch.bfloat16, stored=stored)
