"""From a path or a hub id to a `Source`: which format it is, and who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..runtime.errors import ModelError
from ..runtime.weights.checkpoint import Checkpoint
from ..runtime.weights.engine import is_engine
from ..runtime.weights.locate import open_backend
from .megatron.checkpoint import latest, megatron_format, open_megatron
from .source import Removed, Source

_OTHERS = {
    "engine.json": "an engine directory; name the checkpoint that it was made from",
    "model_index.json": "a diffusers pipeline",
    ".zmetadata": "a zarr checkpoint; convert it to torch_dist with Megatron",
    ".metadata": "torch's distributed checkpoint without Megatron's metadata.json (torch_dcp or fsdp_dtensor)",
    "*.distcp": "chunks of torch's distributed checkpoint without their .metadata",
    "pytorch_model*.bin": "pickled Hugging Face weights; save them as safetensors",
    "consolidated*.pth": "Meta's original weights; convert them to a Hugging Face directory",
    "*.nemo": "a NeMo archive; unpack it",
    "iter_*": "a training run without latest_checkpointed_iteration.txt; name one of its steps",
    "*.gguf": "GGUF files; name one of them",
}
"""What else a directory may hold, by a file that tells it."""
_TRAINERS = {
    "optimizer": ("optimizer.pt", "optimizer.bin", "global_step*/*"),
    "rng": ("rng_state*.pth", "random_states*.pkl"),
    "training state": (
        "scheduler.pt",
        "scheduler.bin",
        "scaler.pt",
        "trainer_state.json",
        "training_args.bin",
    ),
}
"""What trainers leave beside Hugging Face weights; never opened."""


def open_source(model: str | Path, *, tokenizer: str | Path | None = None) -> Source:
    """The checkpoint behind a directory, a file, a hub id, or the default model's name; no tensor is read.

    `tokenizer` is a directory with `tokenizer.json`, for the formats that carry none (Megatron's); it may lie in the
    checkpoint's directory too. Raises `ModelError` naming the file and what is wrong in it, or what was found instead
    of a checkpoint.
    """
    path = Path(model)
    own = is_engine(path) or not (path / "config.json").is_file()
    if str(model) and path.is_dir() and own:
        step = latest(path)
        form = megatron_format(step)
        if form is None:
            raise ModelError(f"{step}: expected a checkpoint, found {_found(step)}")
        beside = (each for each in (step, path) if (each / "tokenizer.json").is_file())
        text = next(beside, None) if tokenizer is None else Path(tokenizer)
        return open_megatron(step, form, path.resolve().name, text)
    if tokenizer is not None:
        raise ModelError(
            f"{model}: tokenizer: expected none, since this format carries its own, found {tokenizer}"
        )
    backend = open_backend(model)
    if not isinstance(backend, Checkpoint):
        raise ModelError(f"{model}: expected a checkpoint, found {type(backend).__name__}")
    return _served(backend)


def _found(directory: Path) -> str:
    """What a directory holds that is not served, for the user to recognise."""
    for pattern, what in _OTHERS.items():
        if any(directory.glob(pattern)):
            return what
    names = sorted(path.name for path in directory.iterdir())
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "nothing in it"


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
        stripped=tuple(_beside(path)) if path.is_dir() else (),
    )


def _beside(directory: Path) -> Iterator[Removed]:
    for group, patterns in _TRAINERS.items():
        files = [path for pattern in patterns for path in directory.glob(pattern) if path.is_file()]
        if files:
            yield Removed(group, len(files), sum(path.stat().st_size for path in files))
