"""Tiny checkpoints of every family, written by transformers: the oracle of names, shapes and defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


def tiny_model(family: str, **options: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**TINY, **options})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", ".bias")):
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model


def write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())[:94])}
    library = Tokenizer(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    library.save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "add_bos_token": True,
        "chat_template": "{{ 1 }}",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_checkpoint(directory: Path, family: str, **options: Any) -> Path:
    """A directory as a hub has it. `options` change the shape."""
    directory.mkdir(parents=True)
    tiny_model(family, **options).save_pretrained(directory)
    write_tokenizer(directory)
    return directory
