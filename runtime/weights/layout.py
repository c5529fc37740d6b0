"""Which tensors a decoder has, and their shapes: checked against headers before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import ModelError
from ..model.config import ModelConfig
from .source import Weights

_DERIVED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Buffers that some checkpoints carry; the model computes them."""


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the decoder by its Hugging Face name; linear weights are out x in."""
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    if config.learned_positions:
        shapes["model.embed_positions.weight"] = (config.max_position, hidden)
    for layer in range(config.num_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer(config)}
    shapes |= dict(_norm(config, "model.norm", hidden))
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def check_layout(weights: Weights, config: ModelConfig) -> None:
    """Raises `ModelError` naming the source and the first tensor that is missing, of another shape, or unknown."""
    expected = expected_shapes(config)
    found = set(weights.names())
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"{weights.source}: the tensor {name} of shape {shape} is missing")
        if weights.shape(name) != shape:
            raise ModelError(
                f"{weights.source}: tensor {name}: expected {shape}, found {weights.shape(name)}"
            )
    for name in weights.names():
        spare = name == "lm_head.weight" and config.tied_embeddings
        if name not in expected and not spare and not name.endswith(_DERIVED):
            raise ModelError(
                f"{weights.source}: the tensor {name} belongs to nothing that the configuration names"
            )


def _layer(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for name, out in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        yield from _linear(f"self_attn.{name}", out, hidden, config.qkv_bias)
    yield from _linear("self_attn.o_proj", hidden, q, config.attention_out_bias)
    if config.qk_norm:
        yield from _norm(config, "self_attn.q_norm", config.head_dim)
        yield from _norm(config, "self_attn.k_norm", config.head_dim)
    for name in ("gate_proj", "up_proj") if config.gated_mlp else ("up_proj",):
        yield from _linear(f"mlp.{name}", inner, hidden, config.mlp_bias)
    yield from _linear("mlp.down_proj", hidden, inner, config.mlp_bias)
    yield from _norm(config, "input_layernorm", hidden)
    yield from _norm(config, "post_attention_layernorm", hidden)


def _linear(name: str, out: int, inputs: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, inputs)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(config: ModelConfig, name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (size,)
    if config.norm == "layer":
        yield f"{name}.bias", (size,)
