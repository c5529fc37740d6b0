"""A GGUF file written out as a Hugging Face directory in bfloat16. numpy only: torch is not needed to set up."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..model.config import ModelConfig
from .gguf_config import gguf_config
from .gguf_file import GgufFile
from .gguf_tokenizer import gguf_end_ids, gguf_tokenizer
from .gguf_weights import GgufWeights


def write_directory(file: GgufFile, target: Path, sampling: dict[str, float]) -> None:
    """Writes config, weights, tokenizer, template and generation settings into `target`, which exists. `sampling` are
    the generation settings that a GGUF file has no place for.

    Raises `ModelError` where the file is not served.
    """
    config = gguf_config(file)
    definition = gguf_tokenizer(file)
    weights = GgufWeights(file, config)
    _write_tensors(target / "model.safetensors", weights)
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    tokenizer_config |= {"add_bos_token": definition.add_bos, **definition.names}
    _write_json(target / "config.json", _llama_config(config))
    _write_json(target / "tokenizer.json", definition.spec)
    _write_json(target / "tokenizer_config.json", tokenizer_config)
    _write_json(target / "generation_config.json", {"eos_token_id": gguf_end_ids(file), **sampling})
    if definition.chat_template is not None:
        (target / "chat_template.jinja").write_text(definition.chat_template, encoding="utf-8")


def _llama_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": "bfloat16",
    }


def _write_tensors(path: Path, weights: GgufWeights) -> None:
    """One safetensors file: the header's length, the header, the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in weights.names():
        start, end = end, end + 2 * math.prod(weights.shape(name))
        header[name] = {"dtype": "BF16", "shape": weights.shape(name), "data_offsets": (start, end)}
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in weights.names():
            file.write(_bfloat16(weights.array(name)))


def _bfloat16(values: NDArray[np.float32]) -> bytes:
    """Rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype("<u2").tobytes()


def _write_json(path: Path, content: object) -> None:
    path.write_bytes(msgspec.json.encode(content))
