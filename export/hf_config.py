"""A `ModelConfig` as the `config.json` of the Hugging Face family that computes the same."""

from __future__ import annotations

from typing import Any

from ..runtime.errors import ModelError
from ..runtime.model.config import ModelConfig

_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "squared_relu": "relu2",
}


def hf_fields(config: ModelConfig) -> dict[str, Any]:
    """Raises `ModelError` naming what no family has."""
    _check(config)
    family, extra = _family(config)
    scaling = rope_scaling(config)
    return {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "hidden_act": _ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        **({"rope_scaling": scaling} if scaling else {}),
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": config.dtype,
        **extra,
    }


def quantization_config(config: ModelConfig, group: int) -> dict[str, Any]:
    """In compressed-tensors' form, as vLLM and TensorRT-LLM read it. `config.quantization` is set, `group` for int4."""
    narrowing = config.quantization
    whole: dict[str, object] = {"symmetric": True, "group_size": None}
    if narrowing == "int4":
        weights: dict[str, object] = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}
        weights |= {"group_size": group}
    else:
        kind = "int" if narrowing == "int8" else "float"
        weights = {"num_bits": 8, "type": kind, "strategy": "channel", **whole}
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, **whole}
    formats = {"int8": "int-quantized", "int4": "pack-quantized", "fp8": "float-quantized"}
    linears = {
        "targets": ["Linear"],
        "weights": weights | {"dynamic": False},
        "input_activations": inputs if narrowing == "int8" else None,
        "output_activations": None,
    }
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, **whole}
    return {
        "quant_method": "compressed-tensors",
        "format": formats[narrowing or ""],
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": cache if narrowing == "fp8" else None,
        "config_groups": {"group_0": linears},
    }


def _check(config: ModelConfig) -> None:
    missing = {
        "LayerNorm": config.norm != "rms",
        "a plain MLP": not config.gated_mlp,
        "learned positions": config.learned_positions,
        "no rotary positions": config.rope_theta is None,
        "partly rotary heads": config.rotary_fraction != 1.0,
    }
    found = [what for what, is_there in missing.items() if is_there]
    if found:
        raise ModelError(f"--format hf: no Hugging Face family that we write has {', '.join(found)}")


def _family(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    biases = (config.qkv_bias, config.attention_out_bias, config.mlp_bias)
    window = config.sliding_window
    if config.qk_norm and biases in ((False, False, False), (True, True, False)):
        return "Qwen3", {"attention_bias": config.qkv_bias, **_layer_types(config)}
    if not config.qk_norm and biases == (True, False, False):
        return "Qwen2", _layer_types(config)
    if not config.qk_norm and window is None and biases[0] == biases[1]:
        return "Llama", {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    if not config.qk_norm and not any(biases) and config.sliding_layers is None:
        return "Mistral", {"sliding_window": window}
    raise ModelError(
        "--format hf: no Hugging Face family that we write has"
        f" qk_norm={config.qk_norm}, biases of query-key-value, output, MLP={biases}, window={window}"
    )


def _layer_types(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return {"use_sliding_window": False}
    slides = [config.slides(layer) for layer in range(config.num_layers)]
    return {
        "use_sliding_window": True,
        "sliding_window": config.sliding_window,
        "max_window_layers": slides.index(True),
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
    }


def rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    """As Hugging Face and TensorRT-LLM spell it, but for the name of a linear one's kind there."""
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position,
    }
