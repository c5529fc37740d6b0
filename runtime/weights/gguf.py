"""A GGUF file as a `Checkpoint`."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Checkpoint
from .generation import generation_defaults
from .gguf_config import gguf_config
from .gguf_file import GgufFile
from .gguf_tokenizer import gguf_end_ids, gguf_tokenizer
from .gguf_weights import GgufWeights


def open_gguf(path: Path) -> Checkpoint:
    """Raises `ModelError` naming the file and what is wrong in it."""
    file = GgufFile(path)
    config = gguf_config(file)
    end_ids = gguf_end_ids(file)
    return Checkpoint(
        path.stem,
        config,
        GgufWeights(file, config),
        gguf_tokenizer(file),
        lambda tokenizer: generation_defaults(str(path), {}, end_ids),
    )
