"""Megatron's training arguments to a decoder's shape; whatever is not served is refused by its argument's name."""

from __future__ import annotations

from typing import Any

import megatron_state as made
import pytest

from jitney.export.megatron.arguments import Arguments, megatron_config, zero_centred
from jitney.export.megatron.records import Record
from jitney.runtime.errors import ModelError
from jitney.runtime.model.config import ModelConfig, RopeScaling


def config(**changes: Any) -> ModelConfig:
    fields = {key: value for key, value in (made.ARGS | changes).items() if value is not ...}
    return megatron_config(Arguments("run", fields), 40, "bfloat16")


def test_a_llama() -> None:
    assert config() == ModelConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        max_position=32,
        norm_eps=1e-5,
    )


def test_what_the_arguments_leave_out() -> None:
    """Megatron's own defaults: a GPT-2."""
    found = megatron_config(
        Arguments(
            "run",
            {
                "num_layers": 1,
                "hidden_size": 8,
                "num_attention_heads": 2,
                "seq_length": 5,
                "norm_epsilon": 1e-5,
            },
        ),
        40,
        "float32",
    )
    assert (found.norm, found.activation, found.gated_mlp, found.rope_theta) == ("layer", "gelu", False, None)
    assert (found.learned_positions, found.tied_embeddings, found.qkv_bias) == (True, True, True)
    assert (found.intermediate_size, found.num_kv_heads, found.head_dim, found.max_position) == (32, 2, 4, 5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"swiglu": False}, {"activation": "gelu", "gated_mlp": False}),
        ({"swiglu": False, "add_bias_linear": True, "bias_gelu_fusion": True}, {"activation": "gelu_tanh"}),
        ({"swiglu": False, "bias_gelu_fusion": True}, {"activation": "gelu"}),
        ({"swiglu": False, "squared_relu": True}, {"activation": "squared_relu", "gated_mlp": False}),
        ({"add_qkv_bias": True}, {"qkv_bias": True, "mlp_bias": False, "attention_out_bias": False}),
        ({"add_bias_linear": True}, {"qkv_bias": True, "mlp_bias": True, "attention_out_bias": True}),
        ({"position_embedding_type": "none"}, {"rope_theta": None, "learned_positions": False}),
        (
            {"position_embedding_type": ..., "use_rotary_position_embeddings": True},
            {"learned_positions": False},
        ),
        ({"rotary_percent": 0.5}, {"rotary_fraction": 0.5}),
        (
            {"rotary_seq_len_interpolation_factor": 4},
            {"rope_scaling": RopeScaling(kind="linear", factor=4.0)},
        ),
        ({"use_rope_scaling": True}, {"rope_scaling": RopeScaling(kind="llama3", factor=8.0)}),
        ({"rotary_base": ...}, {"rope_theta": 10000.0}),
        ({"rotary_base": 500000}, {"rope_theta": 500000.0}),
        ({"kv_channels": 8}, {"head_dim": 8}),
        ({"group_query_attention": False}, {"num_kv_heads": 4}),
        ({"qk_layernorm": True}, {"qk_norm": True}),
        ({"norm_epsilon": ..., "layernorm_epsilon": 1e-6}, {"norm_eps": 1e-6}),
        ({"window_size": None, "num_experts": 0, "mtp_num_layers": 1}, {}),
    ],
)
def test_each_argument(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    found = config(**changes)
    assert {field: getattr(found, field) for field in expected} == expected


def test_zero_centred_by_either_name() -> None:
    assert zero_centred(Arguments("run", {"apply_layernorm_1p": True}))
    assert zero_centred(Arguments("run", {"layernorm_zero_centered_gamma": True}))
    assert not zero_centred(Arguments("run", {}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts": 8}, "args.num_experts: mixtures of experts are not served, found 8"),
        ({"multi_latent_attention": True}, "args.multi_latent_attention: multi-latent attention"),
        ({"heterogeneous_layers_config_path": "x"}, "args.heterogeneous_layers_config_path"),
        ({"hybrid_override_pattern": "M*"}, "args.hybrid_override_pattern: hybrid models"),
        ({"use_mup": True}, "args.use_mup: muP's multipliers"),
        ({"enable_mhc_connections": True}, "args.enable_mhc_connections"),
        ({"is_hybrid_model": True}, "args.is_hybrid_model"),
        ({"experimental_attention_variant": "gated_delta_net"}, "args.experimental_attention_variant"),
        ({"attention_output_gate": True}, "args.attention_output_gate"),
        ({"window_size": (128, 0)}, "args.window_size: windowed attention"),
        ({"no_rope_freq": 4}, "args.no_rope_freq"),
        ({"rotary_interleaved": True}, "args.rotary_interleaved"),
        ({"quick_geglu": True}, "args.quick_geglu"),
        ({"qk_l2_norm": True}, "args.qk_l2_norm"),
        ({"softmax_type": "learnable"}, "args.softmax_type: expected one of vanilla"),
        ({"apply_residual_connection_post_layernorm": True}, "args.apply_residual_connection_post_layernorm"),
        ({"position_embedding_type": "yarn"}, "args.position_embedding_type: expected one of rope"),
        (
            {"normalization": "L2Norm"},
            "args.normalization: expected one of RMSNorm, LayerNorm, found 'L2Norm'",
        ),
        (
            {"normalization": "LayerNorm", "qk_layernorm": True},
            "args.qk_layernorm: expected False beside LayerNorm",
        ),
        ({"squared_relu": True}, "args.squared_relu: expected False beside swiglu"),
        ({"num_query_groups": 3}, "args.num_attention_heads: expected a multiple of num_query_groups"),
        ({"num_attention_heads": 3, "num_query_groups": 1}, "args.hidden_size: expected a multiple"),
        ({"kv_channels": 5}, "args.kv_channels: expected an even number, found 5"),
        ({"rotary_percent": 0.25}, "args.rotary_percent: expected at most 1, with an even part of 4"),
        ({"rotary_percent": 1.5}, "args.rotary_percent"),
        (
            {"use_rope_scaling": True, "rotary_seq_len_interpolation_factor": 2.0},
            "args.rotary_seq_len_interpolation_factor: expected None beside use_rope_scaling",
        ),
        ({"num_layers": ...}, "args.num_layers: expected an integer from 1 to 1024, found None"),
        ({"num_layers": 10**6}, "args.num_layers"),
        ({"hidden_size": True}, "args.hidden_size"),
        ({"hidden_size": -8}, "args.hidden_size"),
        ({"norm_epsilon": "small"}, "args.norm_epsilon: expected a positive number"),
        ({"norm_epsilon": float("nan")}, "args.norm_epsilon"),
        ({"rotary_base": 0}, "args.rotary_base: expected a positive number"),
        ({"swiglu": 1}, "args.swiglu: expected True or False, found 1"),
        (
            {"normalization": Record("some.Class", ())},
            "args.normalization: expected one of .* found some.Class",
        ),
    ],
)
def test_what_is_not_served_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=f"^run: {named}"):
        config(**changes)
