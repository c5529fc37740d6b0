"""What every reader of checkpoints gives: a model's shape, its tensors on demand, its text side, and what was left
behind. From here on nobody knows which format it came in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ..runtime.backend import Backend, GenerationDefaults
from ..runtime.errors import ModelError
from ..runtime.model.config import ModelConfig
from ..runtime.text.definition import TokenizerDefinition
from ..runtime.weights.checkpoint import Checkpoint
from ..runtime.weights.source import Weights

Format = Literal["huggingface", "gguf", "megatron-torch", "megatron-torch_dist"]


class Removed(msgspec.Struct, frozen=True):
    """One group of what serving does not need: `optimizer`, `rng`, `extra state`, `vocabulary padding`, …

    `num_items` counts tensors and other stored objects, `num_bytes` what they take in the checkpoint.
    """

    group: str
    num_items: int
    num_bytes: int


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that was recognised and checked: `weights` holds exactly the tensors that `config` names, under
    Hugging Face's Llama names, and reads one at a time.

    `path` is the file or directory that was read. `tokenizer` is None where the format carries none.
    """

    name: str
    path: Path
    format: Format
    config: ModelConfig
    weights: Weights
    tokenizer: TokenizerDefinition | None
    generation: GenerationDefaults
    stripped: tuple[Removed, ...] = ()

    def definition(self) -> TokenizerDefinition:
        """Raises `ModelError` where there is no tokenizer."""
        if self.tokenizer is None:
            raise ModelError(
                f"{self.path}: the checkpoint has no tokenizer; name a directory that has one (tokenizer)"
            )
        return self.tokenizer

    def backend(self) -> Backend:
        """The source as an engine serves it. Raises `ModelError` where its tokenizer is missing or does not fit."""
        return Checkpoint(self.name, self.config, self.weights, self.definition(), lambda _: self.generation)
