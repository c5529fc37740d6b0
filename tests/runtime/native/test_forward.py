"""Own kernels against their naive twin: every shape of decoder that they cover, in bfloat16 and int8, is as close to
the same weights computed in float32 as torch is, and has the same bits on any number of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import TensorWeights, random_weights, small_llama
from torch import Tensor

from jitney.runtime.batch import RowSampling, Seat
from jitney.runtime.config import EngineConfig
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.model.linear_int8 import rounded
from jitney.runtime.native.forward import NativeForward, why_not
from jitney.runtime.native.library import library
from jitney.runtime.steps.forward import Forward, Run
from jitney.runtime.steps.kernels import choose_kernels
from jitney.runtime.steps.memory import MemoryPlan
from jitney.runtime.steps.slots import Slots
from jitney.runtime.steps.torch_forward import TorchForward

pytestmark = pytest.mark.skipif(library().kernels is None, reason=library().reason)

CONTEXT = 320
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tied_embeddings": False, "vocab_size": 500},
    "one-head-each": {"num_kv_heads": 6},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 64},
    "wide-heads": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 128},
    "odd-heads": {"num_heads": 10, "num_kv_heads": 2, "head_dim": 96},
    "sliding": {"sliding_window": 40, "sliding_layers": (True, False, True)},
    "stablelm": {"norm": "layer", "rotary_fraction": 0.25, "qkv_bias": True},
    "gpt2": {
        "norm": "layer",
        "activation": "gelu_tanh",
        "gated_mlp": False,
        "rope_theta": None,
        "learned_positions": True,
        "qkv_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
    },
    "relu": {"activation": "relu", "gated_mlp": False},
    "squared-relu": {"activation": "squared_relu", "gated_mlp": False},
}
PROMPTS = {3: 290, 0: 1, 1: 33}
"""Lengths by slot."""


def weights_of(model: ModelConfig) -> TensorWeights:
    """Random weights of any of these shapes, exact in bfloat16."""
    tensors = dict(random_weights(model).tensors)
    generator = torch.Generator().manual_seed(1)
    hidden, inner, dim = model.hidden_size, model.intermediate_size, model.head_dim
    q, kv = model.num_heads * dim, model.num_kv_heads * dim
    biased = {
        f"self_attn.{name}_proj": size for name, size in (("q", q), ("k", kv), ("v", kv)) if model.qkv_bias
    }
    biased |= {"self_attn.o_proj": hidden} if model.attention_out_bias else {}
    biased |= (
        {"mlp.up_proj": inner, "mlp.gate_proj": inner, "mlp.down_proj": hidden} if model.mlp_bias else {}
    )
    biased |= (
        dict.fromkeys(("input_layernorm", "post_attention_layernorm"), hidden)
        if model.norm == "layer"
        else {}
    )
    for i in range(model.num_layers):
        layer = f"model.layers.{i}."
        tensors |= {
            f"{layer}{name}.bias": torch.randn(size, generator=generator) for name, size in biased.items()
        }
        tensors |= {
            f"{layer}self_attn.{name}_norm.weight": 1 + torch.randn(dim, generator=generator) / 10
            for name in "qk"
        }
    tensors["model.norm.bias"] = torch.randn(hidden, generator=generator)
    tensors["lm_head.weight"] = torch.randn(model.vocab_size, hidden, generator=generator) / 20
    tensors["model.embed_positions.weight"] = torch.randn(CONTEXT, hidden, generator=generator) / 20
    return TensorWeights({name: tensor.to(torch.bfloat16).float() for name, tensor in tensors.items()})


def seated() -> Slots:
    """Three rows on pages that lie apart."""
    slots, page = Slots(4, CONTEXT // 32), 40
    for slot, length in PROMPTS.items():
        tokens = tuple((length * 7 + 31 * i) % 500 for i in range(length + 1))
        pages = tuple(range(page - CONTEXT // 32, page))[::-1]
        slots.seat(Seat(slot, tokens, length, length + 1, 0, pages, RowSampling(seed=0)))
        page -= CONTEXT // 32
    return slots


def opened(model: ModelConfig, mode: str, *, native: bool, num_threads: int = 2) -> Forward:
    config = EngineConfig(
        dtype="float32" if mode == "float32" else "bfloat16",
        quantize="int8" if mode == "int8" else None,
        max_batch_tokens=64,
        device="cpu",
    )
    plan, slots, weights = MemoryPlan(CONTEXT, 41), seated(), weights_of(model)
    if native:
        assert why_not(model, torch.bfloat16) is None
        return NativeForward(model, weights, plan, slots, num_threads, int8=mode == "int8")
    return TorchForward(model, weights, config, choose_kernels(model, config), plan, slots)


def logprobs(forward: Forward) -> Tensor:
    """Of every row's prompt in one pass, then of a decoded token each."""
    with torch.inference_mode():
        runs = [Run(slot, 0, length) for slot, length in PROMPTS.items()]
        ends = torch.tensor(list(PROMPTS.values())).cumsum(0).sub(1).tolist()
        first = forward.compute(runs, ends, 3)
        second = forward.compute([Run(slot, length, 1) for slot, length in PROMPTS.items()], [0, 1, 2], 3)
        assert first.finite.all() and second.finite.all()
        assert torch.equal(forward.logits(second.hidden), second.logits)
        forward.close()
        return torch.cat([first.logits, second.logits]).log_softmax(-1)


@pytest.mark.parametrize("mode", ["bfloat16", "int8"])
@pytest.mark.parametrize("shape", MODELS)
def test_as_close_to_float32_as_torch(shape: str, mode: str) -> None:
    model = small_llama(max_position=CONTEXT, **MODELS[shape])
    exact = logprobs(opened(model, "float32", native=False))
    errors = [
        (logprobs(opened(model, mode, native=native)) - exact).square().mean().sqrt().item()
        for native in (True, False)
    ]
    spread = exact.std().item()
    assert errors[0] < 1.1 * errors[1] + 0.001 * spread, errors
    assert errors[0] < (0.15 if mode == "int8" else 0.03) * spread, (errors, spread)


@pytest.mark.parametrize("mode", ["bfloat16", "int8"])
def test_any_number_of_threads_gives_the_same_bits(mode: str) -> None:
    model = small_llama(max_position=CONTEXT)
    alone = logprobs(opened(model, mode, native=True, num_threads=1))
    for num_threads in (2, 3, 5):
        assert torch.equal(logprobs(opened(model, mode, native=True, num_threads=num_threads)), alone)


def test_more_threads_than_cores_agree_a_thousand_times() -> None:
    forward = opened(small_llama(max_position=CONTEXT, num_layers=1), "bfloat16", native=True, num_threads=8)
    runs = [Run(slot, 0, 1) for slot in PROMPTS]
    expected = forward.compute(runs, [0, 1, 2], 3).logits
    assert all(torch.equal(forward.compute(runs, [0, 1, 2], 3).logits, expected) for _ in range(1000))
    forward.close()


def test_int8_products_are_exact() -> None:
    model = small_llama(max_position=CONTEXT, tied_embeddings=False, vocab_size=70, hidden_size=640)
    forward = opened(model, "int8", native=True)
    weight = weights_of(model).get("lm_head.weight")
    hidden = torch.randn(70, 640, generator=torch.Generator().manual_seed(0))
    hidden[1:] *= 50
    values, scale = rounded(weight)
    peak = hidden.abs().amax(1, keepdim=True)
    levels = torch.floor(hidden * (127 / peak) + 128.5) - 128
    expected = (levels.double() @ values.double().T) * (peak / 127).double() * scale.double()
    found = forward.logits(hidden)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(forward.logits(hidden[:1]), found[:1])
    forward.close()


def test_a_row_that_fails_fails_alone() -> None:
    model = small_llama(max_position=CONTEXT)
    sound, broken = (opened(model, "int8", native=True) for _ in range(2))
    assert isinstance(broken, NativeForward)
    broken.scrub(broken._slots.pages[3])
    broken._slots.occupant(0).tokens[0] = 499
    broken._layers.shared["embed"]["weight"][499] = float("inf")
    runs = [Run(slot, 0, 1) for slot in PROMPTS]
    expected, found = sound.compute(runs, [0, 1, 2], 3), broken.compute(runs, [0, 1, 2], 3)
    assert found.finite.tolist() == [True, False, True]
    assert torch.equal(found.logits[[0, 2]], expected.logits[[0, 2]])
    sound.close()
    broken.close()
