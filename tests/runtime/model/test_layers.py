"""Weights on their way into a model: which numbers it computes with."""

from __future__ import annotations

import torch
from tiny_models import TensorWeights, small_llama

from jitney.runtime.model import linear_plain
from jitney.runtime.model.layers import load_layers
from jitney.runtime.weights.layout import expected_shapes


def test_a_weight_is_what_the_checkpoints_own_type_holds_of_it() -> None:
    """Whatever is computed in: a quantised file gives float32, and an engine made of it bfloat16."""
    model = small_llama(dtype="bfloat16", num_layers=1)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(model).items()
    }
    layers = load_layers(model, TensorWeights(tensors), linear_plain.pack, torch.float32, 16)
    down, norm = (tensors[f"model.layers.0.{name}.weight"] for name in ("mlp.down_proj", "input_layernorm"))
    found = layers.layers[0]["down"]["weight"], layers.layers[0]["attention_norm"]["weight"]
    assert all(part.dtype == torch.float32 for part in found)
    assert found[0].equal(down.bfloat16().float()) and not found[0].equal(down)
    assert found[1].equal(norm.bfloat16().float())
