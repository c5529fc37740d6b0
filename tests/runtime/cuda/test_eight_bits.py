"""Weights of eight bits in a step: the kernels against plain torch, which narrows the same rows in the same way, or,
with int8, none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from card import CARD, make_step
from tiny_models import random_weights, small_llama


def layer(count: int, *, naive: bool, quantize: str | None = "fp8", mode: str = "fast") -> Tensor:
    """What all products of a layer make of some rows, but for attention; and the output layer of these."""
    model = small_llama(hidden_size=96, intermediate_size=160)
    step = make_step(
        model, random_weights(model), dtype=torch.bfloat16, naive=naive, quantize=quantize, mode=mode,
        max_rows=80, max_context=256,
    )  # fmt: skip
    ops, layers = step._forward._ops, step._forward._layers
    packed, head = layers.layers[0], layers.head
    x = torch.randn(count, 96, generator=torch.Generator().manual_seed(0)).bfloat16().to(CARD)
    with torch.inference_mode():
        qkv = ops.norm_linear(x, packed["attention_norm"], packed["qkv"])
        ops.linear_add(qkv[:, : packed["out"]["weight"].size(1)].contiguous(), packed["out"], x)
        ops.mlp(x, packed["mlp_norm"], packed["up"], packed["down"])
        rows = torch.arange(count, dtype=torch.int32, device=CARD)
        logits = ops.norm_linear(x, layers.shared["norm"], head, rows=rows).float().clone()
    step.close()
    return torch.cat([x.float(), logits], dim=1)


@pytest.mark.parametrize("quantize", ["fp8", "int8"])
@pytest.mark.parametrize("mode", ["fast", "deterministic"])
@pytest.mark.parametrize("count", [1, 3, 70])
def test_kernels_narrow_what_plain_torch_narrows(count: int, mode: str, quantize: str) -> None:
    """They round otherwise at times, which is far less than what narrowing itself loses."""
    exact, naive = layer(count, naive=True, quantize=None), layer(count, naive=True, quantize=quantize)
    lost = (naive - exact).norm()
    found = layer(count, naive=False, mode=mode, quantize=quantize)
    assert 0 < (found - naive).norm() < 0.8 * lost
