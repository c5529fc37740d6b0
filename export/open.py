"""From a path or a hub id to a `Source`: which format it is, and who reads it."""

from __future__ import annotations

from pathlib import Path

from ..runtime.errors import ModelError
from ..runtime.weights.checkpoint import Checkpoint
from ..runtime.weights.locate import open_backend
from .source import Source


def open_source(model: str | Path) -> Source:
    """The checkpoint behind a directory, a file, a hub id, or the default model's name; no tensor is read.

    Raises `ModelError` naming the file and what is wrong in it, or what was found instead of a checkpoint.
    """
    backend = open_backend(model)
    if not isinstance(backend, Checkpoint):
        raise ModelError(f"{model}: expected a checkpoint, found {type(backend).__name__}")
    return _served(backend)


def _served(checkpoint: Checkpoint) -> Source:
    """What the runtime itself reads."""
    path = Path(checkpoint.weights.source)
    return Source(
        name=checkpoint.name,
        path=path,
        format="gguf" if path.suffix == ".gguf" else "huggingface",
        config=checkpoint.config,
        weights=checkpoint.weights,
        tokenizer=checkpoint.definition,
        generation=checkpoint.defaults,
    )
