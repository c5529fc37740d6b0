"""Shapes of known models, to be measured with random weights: written as a directory, so that nothing is downloaded.

The tokenizer is made up: every id past the bytes is a word of letters after a space, one token by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import msgspec
import typer

from ....runtime.errors import InvalidField
from ..options import DEFAULT_MODEL, ModelOption

RandomShape = Annotated[
    str | None,
    typer.Option(help="In place of a model: qwen3-0.6b, llama-1b, llama-8b or qwen3-8b, weights random."),
]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUM_BYTES = 256
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def _llama(
    layers: int, hidden: int, inner: int, head_dim: int, factor: float, *, tied: bool
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": head_dim, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": tied, "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
        "bos_token_id": 128000, "eos_token_id": 128001,
        "rope_scaling": {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip


def _qwen3(layers: int, hidden: int, inner: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936,
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "tie_word_embeddings": tied, "max_position_embeddings": 40960,
        "rope_theta": 1000000.0, "attention_bias": False, "torch_dtype": "bfloat16",
        "bos_token_id": 151643, "eos_token_id": 151645,
    }  # fmt: skip


SHAPES = {
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, tied=True),
    "llama-1b": _llama(16, 2048, 8192, 64, 32.0, tied=True),
    "llama-8b": _llama(32, 4096, 14336, 128, 8.0, tied=False),
    "qwen3-8b": _qwen3(36, 4096, 12288, 32, tied=False),
}


class Subject(msgspec.Struct, frozen=True):
    """What a benchmark runs: options of these names."""

    model: ModelOption = DEFAULT_MODEL
    random_shape: RandomShape = None

    @property
    def name(self) -> str:
        return self.random_shape or self.model

    @contextmanager
    def opened(self) -> Iterator[tuple[str, str]]:
        """What to load, and its load format: the model, or a directory of the shape while the block lasts.

        Raises `InvalidField` where no such shape is known.
        """
        if self.random_shape is None:
            yield self.model, "auto"
            return
        if self.random_shape not in SHAPES:
            raise InvalidField("--random-shape", f"one of {', '.join(SHAPES)}", self.random_shape)
        with TemporaryDirectory(prefix="jitney-shape-") as root:
            directory = Path(root) / self.random_shape
            write_shape(SHAPES[self.random_shape], directory)
            yield str(directory), "random"


def write_shape(config: dict[str, Any], directory: Path) -> None:
    """A Hugging Face directory without weights."""
    directory.mkdir(parents=True)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    files = {
        "config.json": config,
        "generation_config.json": ends,
        "tokenizer.json": _tokenizer(config["vocab_size"]),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": TEMPLATE,
            "add_bos_token": False,
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    from tokenizers.pre_tokenizers import ByteLevel

    vocab = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    vocab |= {"\u0120" + _letters(i): i for i in range(NUM_BYTES, vocab_size)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "ignore_merges": True},
    }


def words(token_ids: Sequence[int]) -> str:
    """Text that a shape's tokenizer reads as these ids, and any other as about as many."""
    return "".join(" " + _letters(token) for token in token_ids)


def _letters(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, len(LETTERS))
        text += LETTERS[digit]
    return text
