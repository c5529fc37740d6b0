"""Every field of `config.json` that changes the model, against transformers' own reading."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jitney.runtime.errors import ModelError
from jitney.runtime.model.config import ModelConfig, RopeScaling
from jitney.runtime.weights.hf_config import hf_config

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


def parsed(family: str, **fields: Any) -> ModelConfig:
    return hf_config("dir/config.json", {"architectures": [f"{family}ForCausalLM"], **fields})


def check_against_transformers(family: str, fields: dict[str, Any]) -> None:
    import transformers

    theirs = getattr(transformers, f"{family}Config")(**json.loads(json.dumps(fields)))
    ours = parsed(family, **fields)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == theirs.num_key_value_heads
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == head_dim
    assert ours.max_position == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.qkv_bias == (family == "Qwen2" or getattr(theirs, "attention_bias", False))
    assert ours.attention_out_bias == getattr(theirs, "attention_bias", False)
    assert ours.mlp_bias == getattr(theirs, "mlp_bias", False)
    assert ours.qk_norm == (family == "Qwen3")
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert sliding(ours) == their_sliding(family, theirs)


def sliding(config: ModelConfig) -> list[int | None]:
    layers = config.sliding_layers or (True,) * config.num_layers
    return [config.sliding_window if slides else None for slides in layers]


def their_sliding(family: str, config: Any) -> list[int | None]:
    window = None if family == "Llama" else config.sliding_window
    types = getattr(config, "layer_types", None)
    layers = [kind == "sliding_attention" for kind in types] if types else [True] * config.num_hidden_layers
    return [window if slides else None for slides in layers]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_key_value_heads": 4, "hidden_size": 256, "num_attention_heads": 8},
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 20000.0},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3, "num_hidden_layers": 5},
        {"use_sliding_window": False, "sliding_window": 64},
        {"use_sliding_window": True, "sliding_window": None},
        {"head_dim": 64},
    ],
)
def test_defaults_and_fields(family: str, fields: dict[str, Any]) -> None:
    check_against_transformers(family, fields)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_attention_bias(family: str) -> None:
    check_against_transformers(family, {"attention_bias": True})


def test_llama_mlp_bias() -> None:
    check_against_transformers("Llama", {"mlp_bias": True})


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_layer_types(family: str) -> None:
    types = ["full_attention", "sliding_attention"]
    fields = {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 2, "layer_types": types}
    check_against_transformers(family, fields)
    assert parsed(family, **fields).sliding_layers == (False, True)


QUANTIZED = {"quant_method": "compressed-tensors", "format": "int-quantized"}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
    ],
)
def test_both_spellings_of_rope(fields: dict[str, Any]) -> None:
    config = parsed("Llama", **fields)
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling(kind="llama3", factor=8.0, original_max_position=8192)


def test_linear_rope() -> None:
    config = parsed("Llama", rope_scaling={"type": "linear", "factor": 2})
    assert config.rope_scaling == RopeScaling(kind="linear", factor=2.0)


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_stored_dtype(field: str) -> None:
    assert parsed("Llama", **{field: "float16"}).dtype == "float16"
    assert (
        hf_config("x", {"architectures": ["LlamaForCausalLM"]}, stored_dtype="bfloat16").dtype == "bfloat16"
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*LlamaForCausalLM"),
        ({"architectures": None}, "architectures"),
        ({"architectures": [["x"]]}, "architectures"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": -4}, "hidden_size"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"hidden_size": 33}, "hidden_size"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_attention_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "rope_scaling.factor"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_type.*yarn"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "dynamic"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"quantization_config": QUANTIZED | {"format": ["x"]}}, "quantization_config.format"),
        ({"quantization_config": QUANTIZED | {"config_groups": {"a": []}}}, "config_groups.weights"),
        ({"quantization_config": QUANTIZED | {"config_groups": {"a": {"weights": [1]}}}}, "groups.weights"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": ["x"]},
            "layer_types",
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": 3},
            "layer_types",
        ),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window"),
    ],
)
def test_what_is_not_served_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=f"(?s)dir/config.json.*{named}"):
        hf_config("dir/config.json", {"architectures": ["LlamaForCausalLM"]} | fields)
