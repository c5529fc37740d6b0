"""A Hugging Face `config.json` to a `ModelConfig`, with the defaults of each family's configuration class."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from ..checks import is_integer, is_number
from ..errors import ModelError
from ..model.config import ModelConfig
from .hf_quantization import hf_quantization
from .hf_rope import rope

_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
_QWEN2 = _LLAMA | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA
    | {
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN2 | {"head_dim": 128},
}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
}
DTYPES = ("float32", "bfloat16", "float16")
MAX_SIZE = 1 << 24
MAX_LAYERS = 1024


class Settings:
    """The fields of one `config.json`, or of an object in it called `prefix`; every read is checked and named."""

    def __init__(self, source: str, fields: dict[str, Any], prefix: str = "") -> None:
        self.source, self.fields, self.prefix = source, fields, prefix

    def within(self, name: str, fields: dict[str, Any]) -> Settings:
        """Those of an object in this one."""
        return Settings(self.source, fields, f"{name}.")

    def size(self, field: str, limit: int = MAX_SIZE) -> int:
        value = self.fields.get(field)
        if not is_integer(value) or not 1 <= value <= limit:
            raise self.error(field, f"an integer from 1 to {limit}", value)
        return value

    def size_or(self, field: str, default: int) -> int:
        return default if self.fields.get(field) is None else self.size(field)

    def flag(self, field: str) -> bool:
        value = self.fields.get(field)
        if value is not None and not isinstance(value, bool):
            raise self.error(field, "true or false", value)
        return bool(value)

    def positive(self, field: str, *default: float) -> float:
        value = self.fields.get(field, *default)
        if not is_number(value) or not 0 < value <= sys.float_info.max:
            raise self.error(field, "a positive number", value)
        return float(value)

    def choice(self, field: str, choices: Any, value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise self.error(field, f"one of {', '.join(choices)}", value)
        return value

    def error(self, field: str, expected: str, found: object) -> ModelError:
        found = str(repr(found))[:80]
        return ModelError(f"{self.source}: {self.prefix}{field}: expected {expected}, found {found}")


def hf_config(source: str, fields: dict[str, Any], *, stored_dtype: str = "float32") -> ModelConfig:
    """The decoder's shape. `stored_dtype` serves where the file names none.

    Raises `ModelError` naming `source` and the field.
    """
    arch = _architecture(source, fields)
    settings = Settings(source, DEFAULTS[arch] | fields)
    hidden, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    if hidden % heads and settings.fields.get("head_dim") is None:
        raise settings.error("hidden_size", f"a multiple of num_attention_heads ({heads})", hidden)
    kv_heads = settings.size_or("num_key_value_heads", heads)
    if heads % kv_heads:
        raise settings.error("num_attention_heads", f"a multiple of num_key_value_heads ({kv_heads})", heads)
    attention_bias = arch in ("LlamaForCausalLM", "Qwen3ForCausalLM") and settings.flag("attention_bias")
    activation = settings.choice("hidden_act", ACTIVATIONS, settings.fields["hidden_act"])
    stored = settings.fields.get("dtype") or settings.fields.get("torch_dtype") or stored_dtype
    config = ModelConfig(
        vocab_size=settings.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=settings.size("intermediate_size"),
        num_layers=settings.size("num_hidden_layers", MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=settings.size_or("head_dim", hidden // heads),
        max_position=settings.size("max_position_embeddings"),
        norm_eps=settings.positive("rms_norm_eps"),
        activation=ACTIVATIONS[activation],  # type: ignore[arg-type]  # the table's values are the literals
        qkv_bias=attention_bias or arch == "Qwen2ForCausalLM",
        attention_out_bias=attention_bias,
        mlp_bias=arch == "LlamaForCausalLM" and settings.flag("mlp_bias"),
        qk_norm=arch == "Qwen3ForCausalLM",
        tied_embeddings=settings.flag("tie_word_embeddings"),
        dtype=settings.choice("torch_dtype", DTYPES, stored),
        quantization=hf_quantization(source, fields),
    )
    return _with_window(arch, settings, rope(settings, config))


def _architecture(source: str, fields: dict[str, Any]) -> str:
    named = fields.get("architectures")
    name = named[0] if isinstance(named, list) and len(named) == 1 else named
    if not isinstance(name, str) or name not in DEFAULTS:
        served = ", ".join(DEFAULTS)
        raise ModelError(f"{source}: architectures: {str(name)[:80]!r} is not served; served: {served}")
    return name


def _with_window(arch: str, settings: Settings, config: ModelConfig) -> ModelConfig:
    fields = settings.fields
    qwen = arch.startswith("Qwen")
    if arch == "LlamaForCausalLM" or fields.get("sliding_window") is None:
        return config
    if qwen and not settings.flag("use_sliding_window"):
        return config
    window = settings.size("sliding_window")
    sliding = _sliding_layers(settings, config.num_layers) if qwen else None
    if sliding is None or all(sliding):
        return msgspec.structs.replace(config, sliding_window=window)
    if not any(sliding):
        return config
    return msgspec.structs.replace(config, sliding_window=window, sliding_layers=sliding)


def _sliding_layers(settings: Settings, num_layers: int) -> tuple[bool, ...]:
    types = settings.fields.get("layer_types")
    if types is None:
        first = settings.fields["max_window_layers"]
        if not is_integer(first):
            raise settings.error("max_window_layers", "an integer", first)
        return tuple(layer >= first for layer in range(num_layers))
    known = {"sliding_attention": True, "full_attention": False}
    if (
        not isinstance(types, list)
        or len(types) != num_layers
        or any(kind not in known for kind in map(str, types))
    ):
        raise settings.error("layer_types", f"{num_layers} of {', '.join(known)}", types)
    return tuple(known[kind] for kind in types)
