"""The model families that are served, tiny and random: transformers' model of each, and its weights under our names."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tiny_models import TensorWeights

from jitney.runtime.model.config import ModelConfig, RopeScaling

SHAPE: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
OURS: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_position": 512,
    "dtype": "float32",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama2": ("Llama", {}, {}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}, {"num_kv_heads": 4}),
    "smollm2": (
        "Llama",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
        {"tied_embeddings": True, "rope_theta": 100000.0},
    ),
    "llama3": (
        "Llama",
        {"rope_parameters": LLAMA3},
        {
            "rope_theta": 500000.0,
            "rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_max_position=64),
        },
    ),
    "linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {"rope_scaling": RopeScaling(kind="linear", factor=4.0)},
    ),
    "bias": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True},
        {"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    ),
    "mistral": ("Mistral", {"sliding_window": 24, "head_dim": 16}, {"sliding_window": 24}),
    "qwen2": ("Qwen2", {}, {"qkv_bias": True}),
    "qwen2-sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
        {"qkv_bias": True, "sliding_window": 24, "sliding_layers": (False, True, True)},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}, {"qk_norm": True, "head_dim": 32}),
    "stablelm": (
        "StableLm",
        {"partial_rotary_factor": 0.25, "use_qkv_bias": True, "layer_norm_eps": 1e-5},
        {"norm": "layer", "rotary_fraction": 0.25, "qkv_bias": True},
    ),
    "gpt2": (
        "GPT2",
        {"n_inner": 96, "tie_word_embeddings": True},
        {
            "num_kv_heads": 4,
            "norm": "layer",
            "activation": "gelu_tanh",
            "gated_mlp": False,
            "rope_theta": None,
            "learned_positions": True,
            "qkv_bias": True,
            "attention_out_bias": True,
            "mlp_bias": True,
            "tied_embeddings": True,
        },
    ),
}
PROMPT = [(7 * i * i + 3 * i + 1) % 160 for i in range(75)]


def family_of(family: str) -> tuple[Any, ModelConfig, TensorWeights]:
    """transformers' model in float32 on the CPU, our shape of it, and its tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    name, theirs, ours = FAMILIES[family]
    torch.manual_seed(1)
    config = getattr(transformers, name + "Config")(**(SHAPE | theirs))
    config._attn_implementation = "eager"
    kind = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    reference = getattr(transformers, name + kind)(config).eval().float()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.08 if parameter.dim() > 1 else 0.2))
    tensors = dict(reference.state_dict())
    return (
        reference,
        ModelConfig(**(OURS | ours)),
        TensorWeights(gpt2(tensors) if name == "GPT2" else tensors),
    )


def gpt2(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2's tensors (products with the weight on the right, query, key and value in one) under our names."""
    ours = {"model.embed_tokens.weight": theirs["transformer.wte.weight"]}
    ours["model.embed_positions.weight"] = theirs["transformer.wpe.weight"]
    for part in ("weight", "bias"):
        ours[f"model.norm.{part}"] = theirs[f"transformer.ln_f.{part}"]
        for i in range(3):
            block, layer = f"transformer.h.{i}.", f"model.layers.{i}."
            ours[f"{layer}input_layernorm.{part}"] = theirs[f"{block}ln_1.{part}"]
            ours[f"{layer}post_attention_layernorm.{part}"] = theirs[f"{block}ln_2.{part}"]
            fused = theirs[f"{block}attn.c_attn.{part}"].t().chunk(3)
            for name, tensor in zip("qkv", fused, strict=True):
                ours[f"{layer}self_attn.{name}_proj.{part}"] = tensor
            ours[f"{layer}self_attn.o_proj.{part}"] = theirs[f"{block}attn.c_proj.{part}"].t()
            ours[f"{layer}mlp.up_proj.{part}"] = theirs[f"{block}mlp.c_fc.{part}"].t()
            ours[f"{layer}mlp.down_proj.{part}"] = theirs[f"{block}mlp.c_proj.{part}"].t()
    return ours
