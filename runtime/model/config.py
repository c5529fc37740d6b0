"""The shape of a decoder, whatever format its checkpoint came in. No torch."""

from __future__ import annotations

from typing import Literal

import msgspec


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How rotary frequencies are stretched past the trained context.

    `linear` divides positions by `factor` (Chen et al. 2023); `llama3` blends by wavelength (Llama 3.1's release).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One decoder for the Llama family and Megatron's GPT variants. Sizes are counts of elements.

    Weights are named as Hugging Face's Llama names them (`model.layers.0.self_attn.q_proj.weight`, out x in), with
    `model.embed_positions.weight` for learned positions, `…mlp.up_proj`/`down_proj` alone for a plain MLP, `.bias`
    beside a weight that has one, and no `lm_head.weight` where embeddings are tied.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "squared_relu"] = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_theta: float | None = 10000.0
    """None: no rotary positions."""
    rope_scaling: RopeScaling | None = None
    rotary_fraction: float = 1.0
    learned_positions: bool = False
    sliding_window: int | None = None
    """A position sees itself and this many less one before it."""
    sliding_layers: tuple[bool, ...] | None = None
    """Which layers slide; None: all of them, where `sliding_window` is set."""
    tied_embeddings: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """As stored in the checkpoint."""
    quantization: Literal["int8", "int4", "fp8"] | None = None
    """How the checkpoint stores the layers' linear weights, where not in `dtype`."""

    def slides(self, layer: int) -> bool:
        """Whether a layer's attention has a sliding window."""
        if self.sliding_window is None:
            return False
        return self.sliding_layers is None or self.sliding_layers[layer]

    @property
    def windows(self) -> frozenset[int | None]:
        """Those of the layers; None: a layer that sees everything."""
        return frozenset(
            self.sliding_window if self.slides(layer) else None for layer in range(self.num_layers)
        )
