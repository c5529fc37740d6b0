"""GGUF metadata to a `ModelConfig`, for the architectures of the Llama family."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..errors import ModelError
from ..model.config import ModelConfig, RopeScaling
from .gguf_file import GgufFile
from .hf_config import MAX_LAYERS, MAX_SIZE

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def gguf_config(file: GgufFile) -> ModelConfig:
    """The decoder's shape. Raises `ModelError` naming the file and the key."""
    arch = file.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: architecture {arch!r} is not served; served: {', '.join(ARCHITECTURES)}"
        )
    keys = _Keys(file, arch)
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise ModelError(f"{file.path}: split.count: a model in several GGUF files is not served; join them")
    if keys.number("expert_count", 0):
        raise ModelError(f"{file.path}: {arch}.expert_count: mixtures of experts are not served")
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    kv_heads = keys.size("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise keys.error("attention.head_count", f"a multiple of head_count_kv ({kv_heads})", heads)
    head_dim = keys.size("attention.key_length", hidden // heads)
    if head_dim % 2:
        raise keys.error("attention.key_length", "an even number", head_dim)
    if keys.size("rope.dimension_count", head_dim) != head_dim:
        raise ModelError(f"{file.path}: {arch}.rope.dimension_count: expected the head size {head_dim}")
    num_layers = keys.size("block_count")
    if num_layers > MAX_LAYERS:
        raise keys.error("block_count", f"at most {MAX_LAYERS} layers", num_layers)
    tensors = file.tensors
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{file.path}: the tensor token_embd.weight is missing")
    return ModelConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=keys.size("context_length"),
        norm_eps=_as_written(keys.number("attention.layer_norm_rms_epsilon")),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        attention_out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm=arch == "qwen3",
        rope_theta=_as_written(keys.number("rope.freq_base", 10000.0)),
        rope_scaling=_rope_scaling(keys, head_dim),
        sliding_window=keys.size("attention.sliding_window", None),
        tied_embeddings="output.weight" not in tensors,
        dtype=_stored_dtype(tensors["token_embd.weight"].kind),
    )


class _Keys:
    def __init__(self, file: GgufFile, arch: str) -> None:
        self.file = file
        self.arch = arch

    def number(self, key: str, default: float | None = None) -> float:
        value = self.file.metadata.get(f"{self.arch}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(key, "a number", value)
        return value

    def size(self, key: str, *default: Any) -> Any:
        value = self.file.metadata.get(f"{self.arch}.{key}", *default)
        if default and value is default[0]:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            raise self.error(key, f"an integer from 1 to {MAX_SIZE}", value)
        return value

    def error(self, key: str, expected: str, value: object) -> ModelError:
        return ModelError(
            f"{self.file.path}: {self.arch}.{key}: expected {expected}, found {str(value)[:80]!r}"
        )


def _rope_scaling(keys: _Keys, head_dim: int) -> RopeScaling | None:
    if "rope_freqs.weight" in keys.file.tensors:
        return _llama3_scaling(keys, head_dim)
    kind = keys.file.metadata.get(f"{keys.arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=keys.number("rope.scaling.factor"))
    raise keys.error("rope.scaling.type", "'none' or 'linear'", kind)


def _llama3_scaling(keys: _Keys, head_dim: int) -> RopeScaling:
    """GGUF keeps only the frequency divisors of Llama 3.1's rule. Its other three numbers are those of every
    release; that they give these divisors is checked."""
    tensor = keys.file.tensors["rope_freqs.weight"]
    if tensor.kind != GGMLQuantizationType.F32 or tensor.shape != (head_dim // 2,):
        raise ModelError(f"{keys.file.path}: rope_freqs.weight: expected {head_dim // 2} F32 divisors")
    found = np.frombuffer(keys.file.data, np.float32, head_dim // 2, tensor.start)
    scaling = RopeScaling(kind="llama3", factor=float(found.max()))
    theta = keys.number("rope.freq_base", 10000.0)
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = np.clip((scaling.original_max_position / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(found, 1 / ((1 - blend) / scaling.factor + blend), rtol=1e-3):
        raise ModelError(f"{keys.file.path}: rope_freqs.weight: expected the divisors of Llama 3.1's rule")
    return scaling


def _as_written(value: float) -> float:
    """The shortest decimal that has this float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _stored_dtype(kind: GGMLQuantizationType) -> Literal["float32", "bfloat16", "float16"]:
    if kind == GGMLQuantizationType.F32:
        return "float32"
    return "float16" if kind == GGMLQuantizationType.F16 else "bfloat16"
