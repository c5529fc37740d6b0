"""Megatron's training arguments to a `ModelConfig`. What would change the mathematics and is not served is refused by
name; what only steers training is not looked at."""

from __future__ import annotations

import math
from typing import Any, Literal

from ...runtime.errors import ModelError
from ...runtime.model.config import ModelConfig, RopeScaling
from ...runtime.weights.hf_config import MAX_LAYERS, MAX_SIZE
from .records import shown

_REFUSED = {
    "num_experts": "mixtures of experts",
    "multi_latent_attention": "multi-latent attention",
    "heterogeneous_layers_config_path": "layers of different kinds",
    "heterogeneous_block_specs": "layers of different kinds",
    "use_mup": "muP's multipliers",
    "enable_mhc_connections": "hyper-connections",
    "is_hybrid_model": "hybrid models",
    "hybrid_layer_pattern": "hybrid models",
    "hybrid_override_pattern": "hybrid models",
    "experimental_attention_variant": "other kinds of attention",
    "linear_attention_freq": "linear attention",
    "attention_output_gate": "gated attention",
    "window_size": "windowed attention",
    "no_rope_freq": "layers without positions",
    "rotary_interleaved": "interleaved rotary positions",
    "quick_geglu": "quick GEGLU",
    "openai_gelu": "OpenAI's GELU",
    "glu_linear_offset": "an offset in the gated MLP",
    "activation_func_clamp_value": "a clamped activation",
    "qk_l2_norm": "L2-normed queries and keys",
    "softmax_scale": "another attention scale",
    "apply_residual_connection_post_layernorm": "residuals taken after the norm",
}
_NORMS: dict[str, Literal["rms", "layer"]] = {"RMSNorm": "rms", "LayerNorm": "layer"}
_ROTARY, _LEARNED, _NONE = "rope", "learned_absolute", "none"
_LLAMA3_ORIGINAL_MAX_POSITION = 8192
"""Megatron knows no other for `use_rope_scaling`."""


class Arguments:
    """The fields of `args`; every read is checked and named. `source` is the checkpoint, for messages."""

    def __init__(self, source: str, fields: dict[str, Any]) -> None:
        self.source = source
        self.fields = fields

    def size(self, field: str, *others: str, limit: int = MAX_SIZE) -> int:
        value = self._first(field, *others)
        if type(value) is not int or not 1 <= value <= limit:
            raise self.error(field, f"an integer from 1 to {limit}", value)
        return value

    def size_or(self, field: str, default: int) -> int:
        return default if self.fields.get(field) is None else self.size(field)

    def positive(self, field: str, *others: str, default: float | None = None) -> float:
        value = self._first(field, *others)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.error(field, "a positive number", value)
        return float(value)

    def flag(self, field: str, *others: str, default: bool = False) -> bool:
        value = self._first(field, *others)
        if value is not None and not isinstance(value, bool):
            raise self.error(field, "True or False", value)
        return default if value is None else value

    def choice(self, field: str, choices: Any, default: str) -> str:
        value = self.fields.get(field)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            raise self.error(field, f"one of {', '.join(choices)}", value)
        return value

    def error(self, field: str, expected: str, found: object) -> ModelError:
        return ModelError(f"{self.source}: args.{field}: expected {expected}, found {shown(found)}")

    def _first(self, *names: str) -> Any:
        return next((self.fields[name] for name in names if self.fields.get(name) is not None), None)


def megatron_config(args: Arguments, vocab_size: int, stored_dtype: str) -> ModelConfig:
    """The decoder's shape. Raises `ModelError` naming the argument that is missing, contradictory or not served."""
    _refuse(args)
    hidden, heads = args.size("hidden_size"), args.size("num_attention_heads")
    kv_heads = args.size("num_query_groups") if args.flag("group_query_attention") else heads
    if heads % kv_heads:
        raise args.error("num_attention_heads", f"a multiple of num_query_groups ({kv_heads})", heads)
    if hidden % heads and args.fields.get("kv_channels") is None:
        raise args.error("hidden_size", f"a multiple of num_attention_heads ({heads})", hidden)
    head_dim = args.size_or("kv_channels", hidden // heads)
    if head_dim % 2:
        raise args.error("kv_channels", "an even number", head_dim)
    norm = _NORMS[args.choice("normalization", _NORMS, "LayerNorm")]
    if norm == "layer" and args.flag("qk_layernorm"):
        raise args.error("qk_layernorm", "False beside LayerNorm: heads are normed by RMSNorm only", True)
    bias = args.flag("add_bias_linear", default=True)
    if stored_dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(
            f"{args.source}: expected weights of float32, bfloat16 or float16, found {stored_dtype}"
        )
    positions = _positions(args)
    rotary = positions == _ROTARY
    activation, gated = _activation(args, bias)
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=args.size_or("ffn_hidden_size", 4 * hidden),
        num_layers=args.size("num_layers", limit=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=args.size("max_position_embeddings", "seq_length"),
        norm=norm,
        norm_eps=args.positive("norm_epsilon", "layernorm_epsilon"),
        activation=activation,
        gated_mlp=gated,
        qkv_bias=bias or args.flag("add_qkv_bias"),
        attention_out_bias=bias,
        mlp_bias=bias,
        qk_norm=args.flag("qk_layernorm"),
        rope_theta=args.positive("rotary_base", default=10000.0) if rotary else None,
        rope_scaling=_rope_scaling(args) if rotary else None,
        rotary_fraction=_rotary_fraction(args, head_dim) if rotary else 1.0,
        learned_positions=positions == _LEARNED,
        tied_embeddings=not args.flag("untie_embeddings_and_output_weights"),
        dtype=stored_dtype,  # type: ignore[arg-type]  # checked above
    )


def zero_centred(args: Arguments) -> bool:
    """Whether norms store their weight less one."""
    return args.flag("apply_layernorm_1p", "layernorm_zero_centered_gamma")


def _refuse(args: Arguments) -> None:
    for field, what in _REFUSED.items():
        value = args.fields.get(field)
        if value not in (None, False, 0):
            raise ModelError(f"{args.source}: args.{field}: {what} are not served, found {shown(value)}")
    args.choice("softmax_type", ("vanilla",), "vanilla")


def _activation(
    args: Arguments, bias: bool
) -> tuple[Literal["silu", "gelu", "gelu_tanh", "squared_relu"], bool]:
    swiglu, squared = args.flag("swiglu"), args.flag("squared_relu")
    if swiglu and squared:
        raise args.error("squared_relu", "False beside swiglu", True)
    if swiglu:
        return "silu", True
    if squared:
        return "squared_relu", False
    # Megatron's fused bias and GELU computes the tanh approximation; unfused it computes the exact one.
    return "gelu_tanh" if bias and args.flag("bias_gelu_fusion") else "gelu", False


def _positions(args: Arguments) -> str:
    old = _ROTARY if args.flag("use_rotary_position_embeddings") else _LEARNED
    return args.choice("position_embedding_type", (_ROTARY, _LEARNED, _NONE), old)


def _rope_scaling(args: Arguments) -> RopeScaling | None:
    interpolated = args.fields.get("rotary_seq_len_interpolation_factor")
    if args.flag("use_rope_scaling"):
        if interpolated is not None:
            raise args.error(
                "rotary_seq_len_interpolation_factor", "None beside use_rope_scaling", interpolated
            )
        factor = args.positive("rope_scaling_factor", default=8.0)
        return RopeScaling(kind="llama3", factor=factor, original_max_position=_LLAMA3_ORIGINAL_MAX_POSITION)
    if interpolated is None:
        return None
    return RopeScaling(kind="linear", factor=args.positive("rotary_seq_len_interpolation_factor"))


def _rotary_fraction(args: Arguments, head_dim: int) -> float:
    fraction = args.positive("rotary_percent", default=1.0)
    if fraction > 1 or int(head_dim * fraction) % 2:
        raise args.error("rotary_percent", f"at most 1, with an even part of {head_dim}", fraction)
    return fraction
