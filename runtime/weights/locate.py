"""From a model's name to a `Backend`: the default model, a directory, a GGUF file, or a hub id. What reads GGUF is
imported where it is needed: a second start does without."""

from __future__ import annotations

import re
from pathlib import Path

from ..backend import Backend
from ..errors import InvalidField, ModelError
from . import default_model
from .engine import EngineCheckpoint, is_engine
from .huggingface import open_directory

HUB_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "*config.json",
    "tokenizer.json",
    "chat_template.jinja",
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_backend(model: str | Path, *, random_weights: bool = False) -> Backend:
    """The model's text side, ready; its weights are read by `open_step`. With `random_weights` only the shape is taken
    from it. Raises `ModelError` naming what was tried, or the file and what is wrong in it; `InvalidField` for random
    weights where the shape is not a file of its own.
    """
    path = Path(model)
    if isinstance(model, str) and model.lower() in default_model.NAMES:
        directory = default_model.default_model()
        return open_directory(directory, default_model.NAMES[0], random_weights=random_weights)
    if random_weights and (path.suffix == ".gguf" or (str(model) and is_engine(path))):
        raise InvalidField("load_format", f"'auto' for {path}, whose weights and shape are one", "random")
    if str(model) and is_engine(path):
        return EngineCheckpoint(path)
    if str(model) and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path}: expected config.json or engine.json, found neither; what training left behind is first"
                f" exported: jitney export {path} ENGINE"
            )
        return open_directory(path, path.resolve().name, random_weights=random_weights)
    if path.suffix == ".gguf":
        from .gguf import open_gguf

        return open_gguf(path)
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return open_directory(_snapshot(model), model, random_weights=random_weights)
    raise ModelError(
        f"{model}: no such model; expected {default_model.NAMES[0]}, a directory with config.json,"
        " an engine directory, a .gguf file, or a hub id such as org/name"
    )


def _snapshot(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's own, its HTTP library's, the system's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{hub_id}: no such directory here, and the hub gave no snapshot: {reason}"
        ) from error
