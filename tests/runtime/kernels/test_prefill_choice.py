"""The chooser says which kernel it took and why; on a card with FlashAttention 3 the two agree."""

from __future__ import annotations

import pytest
import torch
from paged_attention import DEVICE, int32, layer_cache, random

from jitney.runtime.kernels.flash_attention import missing
from jitney.runtime.kernels.paging import Chunks
from jitney.runtime.kernels.prefill_attention import prefill_attention
from jitney.runtime.kernels.prefill_choice import prefill_attention_for

BF16 = torch.bfloat16


@pytest.mark.parametrize(
    "dtype,head_dim,deterministic,why",
    [
        (BF16, 128, True, "one order"),
        (torch.float32, 128, False, "float32"),
        (BF16, 80, False, "head dim 80"),
    ],
)
def test_own_kernel_and_why(dtype: torch.dtype, head_dim: int, deterministic: bool, why: str) -> None:
    choice = prefill_attention_for(torch.device(DEVICE), dtype, dtype, head_dim, deterministic=deterministic)
    assert choice.name == "own kernel" and why in choice.reason


def test_without_a_hopper() -> None:
    choice = prefill_attention_for(torch.device("cpu"), BF16, BF16, 128)
    assert choice.name == "own kernel" and "9.0" in choice.reason


@pytest.mark.skipif(missing(torch.device(DEVICE)) is not None, reason="needs FlashAttention 3 on a Hopper")
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("fresh", [False, True])
def test_flash_attention_agrees(fresh: bool, window: int | None) -> None:
    starts = [0, 0] if fresh else [70, 3]
    cache = layer_cache([starts[0] + 90, starts[1] + 40], 2, 64, room=0, page=64, dtype=BF16)
    chunks = Chunks(int32([0, 1, 2]), int32([*starts, 0]), int32([0, 90, 130]), int32([90, 40, 0]))
    qkv = random(torch.Generator().manual_seed(5), 140, 8 * 64, dtype=BF16)
    if fresh:
        for slot, at, length in ((0, 0, 90), (1, 90, 40)):
            for position in range(length):
                place = cache.pool[cache.tables[slot, position // 64], :, :, position % 64]
                qkv[at + position, 4 * 64 :] = place.flatten()
    expected = torch.zeros(140, 4 * 64, dtype=BF16, device=DEVICE)
    out = expected.clone()
    prefill_attention(qkv, chunks, cache, expected, window=window)
    choice = prefill_attention_for(torch.device(DEVICE), BF16, BF16, 64)
    choice(qkv, chunks, cache, out, window=window, fresh=fresh)
    torch.testing.assert_close(out[:130], expected[:130], rtol=2e-2, atol=2e-2)
