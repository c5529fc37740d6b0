"""A `ModelConfig` as the `config.json` of a TensorRT-LLM checkpoint, for its releases up to 1.2."""

from __future__ import annotations

from typing import Any

from ..runtime.errors import ModelError
from ..runtime.model.config import ModelConfig
from .hf_config import rope_scaling

_GATED = {"silu": "swiglu", "gelu": "geglu"}
_PLAIN = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
    "squared_relu": "squared-relu",
}


_QUANTIZATION: dict[str | None, dict[str, Any]] = {
    None: {"quant_algo": None, "kv_cache_quant_algo": None},
    "fp8": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
}


def trtllm_fields(config: ModelConfig, tp: int, pp: int) -> dict[str, Any]:
    """Raises `ModelError` naming what the format has no place for."""
    _check(config)
    architecture, activation = _architecture(config)
    rotary = config.rope_theta is not None
    return {
        "architecture": architecture,
        "dtype": config.dtype,
        "logits_dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_size": config.head_dim,
        "hidden_act": activation,
        "intermediate_size": config.intermediate_size,
        "norm_epsilon": config.norm_eps,
        "position_embedding_type": "rope_gpt_neox" if rotary else "learned_absolute",
        "rotary_base": config.rope_theta or 10000.0,
        "rotary_pct": config.rotary_fraction,
        "rotary_scaling": _rotary_scaling(config),
        "use_parallel_embedding": tp > 1,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "qk_layernorm": False,
        "bias": config.mlp_bias,
        "attn_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        "quantization": _QUANTIZATION[config.quantization],
        **({"qwen_type": "qwen2"} if architecture == "QWenForCausalLM" else {}),
    }


def _architecture(config: ModelConfig) -> tuple[str, str]:
    llama = config.norm == "rms" and config.gated_mlp and not config.learned_positions
    llama = llama and config.rope_theta is not None and config.rotary_fraction == 1.0
    if llama and config.qkv_bias and not config.attention_out_bias and not config.mlp_bias:
        return "QWenForCausalLM", _PLAIN[config.activation]
    if llama and config.qkv_bias == config.attention_out_bias:
        return "LlamaForCausalLM", _PLAIN[config.activation]
    if config.gated_mlp and config.activation not in _GATED:
        raise ModelError(f"--format trtllm: a gated MLP with {config.activation} has no name there")
    return "GPTForCausalLM", (_GATED if config.gated_mlp else _PLAIN)[config.activation]


def _check(config: ModelConfig) -> None:
    absent = {
        "norms of queries and keys": config.qk_norm,
        "sliding windows": config.sliding_window is not None,
        f"our {config.quantization} weights (for fp8 it has; TensorRT-LLM reads --format hf too)": (
            config.quantization not in _QUANTIZATION
        ),
    }
    found = [what for what, is_there in absent.items() if is_there]
    if found:
        raise ModelError(f"--format trtllm: the checkpoint has no place for {', '.join(found)}")


def _rotary_scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = rope_scaling(config)
    if scaling is None or scaling["rope_type"] != "linear":
        return scaling
    return {"type": "linear", "factor": scaling["factor"]}
