"""Tiny GGUF files as llama.cpp's converter writes them: rows of q and k interleaved for architecture `llama`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

PARTS = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    pieces = name.split(".")
    layer = f"blk.{pieces[2]}." if "layers" in pieces else ""
    return f"{layer}{PARTS[pieces[-2]]}.{pieces[-1]}"


def interleaved(values: Any, num_heads: int) -> Any:
    halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def gpt2_tokenizer(writer: GGUFWriter, size: int) -> None:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: size - 4]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*alphabet, "<s>", "</s>", "<tool>", "ab"])
    writer.add_token_types([1] * len(alphabet) + [3, 3, 4, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(size - 4)
    writer.add_eos_token_id(size - 3)
    writer.add_chat_template("<s>{{ messages[0].content }}")


def write_gguf(path: Path, arch: str, model: Any, *, kind: str = "F32", **metadata: Any) -> Path:
    config = model.config
    writer = GGUFWriter(path, arch)
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_freq_base": config.rope_parameters["rope_theta"],
    }
    if getattr(config, "head_dim", None):
        own["key_length"] = config.head_dim
    for key, value in (own | metadata).items():
        getattr(writer, f"add_{key}")(*value if isinstance(value, tuple) else (value,))
    gpt2_tokenizer(writer, config.vocab_size)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values, part = tensor.float().numpy(), name.split(".")[-2]
        if arch == "llama" and part in heads:
            values = interleaved(values, heads[part])
        stored = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(gguf_name(name), quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
