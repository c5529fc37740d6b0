"""An engine directory as a `Checkpoint`: nothing to convert, nothing to fuse, every byte checked before it answers.

Opening checks the manifest's own digest and the sizes of all files, and reads the text side. Meanwhile threads
compare every block of every file with its digest; `open_step` and `open_padded` wait for them at their end.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from ..batch import PaddedBatch, Step
from ..config import EngineConfig
from ..errors import ModelError
from ..kernels.kernel_file import PREFIX, KernelFile, read_kernels, this_card
from ..model.config import ModelConfig
from . import manifest as manifests
from .blocks import BlockCheck
from .checkpoint import Checkpoint
from .huggingface import directory_defaults, directory_tokenizer
from .manifest import Manifest, read_manifest, rebuild_command
from .mapped_tensors import MappedTensors
from .quantized_weights import QuantizedWeights
from .split_rows import SplitRows

GENERATION = "generation_config.json"
TEXT = ("tokenizer.json", "tokenizer_config.json", GENERATION, "chat_template.jinja")
"""Small files, checked before they are read."""

logger = logging.getLogger("jitney")


def is_engine(directory: Path) -> bool:
    return (directory / manifests.NAME).is_file()


def weights_name(rank: int) -> str:
    return f"rank{rank}.safetensors"


class EngineWeights(QuantizedWeights):
    """The tensors of one rank's file. `source` is the directory."""

    def __init__(self, directory: Path, config: ModelConfig, rank: int = 0) -> None:
        """`config`: the shape of the rank's part."""
        super().__init__(SplitRows(MappedTensors(directory / weights_name(rank)), config))
        self.source = str(directory)


class EngineCheckpoint(Checkpoint):
    """`Backend` of an engine directory."""

    def __init__(self, directory: Path) -> None:
        """Raises `ModelError` naming the file and what is wrong in it."""
        self.manifest = manifest = read_manifest(directory)
        _check_files(directory, manifest)
        if manifest.tp != 1:
            raise ModelError(
                f"{directory}: made for {manifest.tp} ranks (--tp {manifest.tp}). For one device:"
                f" {rebuild_command(directory, manifest.source, _without_tp(manifest.options))}"
            )
        text, weights = [
            BlockCheck((directory / f.name, f.sha256) for f in manifest.files if (f.name in TEXT) == is_text)
            for is_text in (True, False)
        ]
        text.finish()
        self._check = weights
        super().__init__(
            directory.resolve().name,
            manifest.config,
            EngineWeights(directory, manifest.config),
            directory_tokenizer(directory),
            lambda tokenizer: directory_defaults(directory, tokenizer),
        )
        self.tiles, self.kv_scales = manifest.tiles, manifest.kv_scales
        self.context_length = min(self.context_length, manifest.limits.max_context or self.context_length)

    def verify(self) -> None:
        """Wait until every byte has been checked. Raises `ModelError` naming the file and the block."""
        self._check.finish()

    def open_step(self, config: EngineConfig) -> Step:
        step = super().open_step(self.sized(config))
        try:
            self.verify()
        except BaseException:
            step.close()
            raise
        return step

    def brought_kernels(self) -> KernelFile | None:
        """Checked before they are read. None are brought for another card, which the log says."""
        files = {file.name: file.sha256 for file in self.manifest.files if file.name.startswith(PREFIX)}
        if not files:
            return None
        here = this_card().file_name
        if here not in files:
            logger.warning(
                "kernels are compiled: this card needs %s, the engine brings %s", here, ", ".join(files)
            )
            return None
        path = Path(self.weights.source, here)
        BlockCheck([(path, files[here])]).finish()
        return read_kernels(path)

    def open_padded(self, config: EngineConfig) -> PaddedBatch:
        self.verify()
        return super().open_padded(self.sized(config))

    def sized(self, config: EngineConfig) -> EngineConfig:
        limits = msgspec.structs.asdict(self.manifest.limits)
        unset = {name: size for name, size in limits.items() if size and getattr(config, name) is None}
        return msgspec.structs.replace(config, **unset)


def _check_files(directory: Path, manifest: Manifest) -> None:
    """What is read must be named by the manifest, or nobody would have checked it."""
    named = {file.name for file in manifest.files}
    for name in (weights_name(0), "tokenizer.json", GENERATION):
        if name not in named:
            raise ModelError(f"{directory / manifests.NAME}: files: {name} is missing")
    for name in TEXT:
        if name not in named and (directory / name).exists():
            raise ModelError(f"{directory / name}: expected only files that {manifests.NAME} names")


def _without_tp(options: tuple[str, ...]) -> tuple[str, ...]:
    at = options.index("--tp") if "--tp" in options else len(options)
    return options[:at] + options[at + 2 :]
