"""A checkpoint as a `Backend`: its text side, read at once, and its weights, read when the step opens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import msgspec

from ..backend import GenerationDefaults, Tokenizer
from ..batch import PaddedBatch, Step
from ..config import EngineConfig
from ..errors import ModelError
from ..kernels.kernel_file import KernelFile
from ..model.config import ModelConfig
from ..process import has_card, short_spins
from ..text.definition import TokenizerDefinition
from ..text.tokenizer import ModelTokenizer
from .layout import check_layout
from .manifest import TileChoice
from .source import Weights


class Checkpoint:
    """`Backend` of a model on disk. `config` is its shape, `weights` its tensors by Hugging Face name, `definition` its
    tokenizer as data."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        weights: Weights,
        definition: TokenizerDefinition,
        read_defaults: Callable[[ModelTokenizer], GenerationDefaults],
    ) -> None:
        """Raises `ModelError` where the parts do not fit each other."""
        check_layout(weights, config)
        self.name = name
        self.config = config
        self.weights = weights
        self.definition = definition
        self.tiles: tuple[TileChoice, ...] = ()
        self.kv_scales: tuple[tuple[float, float], ...] = ()
        """By layer, of a key and a value in 8 bits; none are known: 1."""
        self.context_length = config.max_position
        self.vocab_size = config.vocab_size
        tokenizer = ModelTokenizer(definition, config.vocab_size)
        self.tokenizer: Tokenizer = tokenizer
        self.defaults = read_defaults(tokenizer)
        for end_id in self.defaults.end_token_ids:
            if end_id >= config.vocab_size:
                raise ModelError(
                    f"{weights.source}: eos_token_id: expected below {config.vocab_size}, found {end_id}"
                )

    def open_step(self, config: EngineConfig) -> Step:
        with short_spins() if config.tune_process else nullcontext():
            on_card = config.device != "cpu" and has_card(required=config.device == "cuda")
        if on_card:
            from ..cuda.open import has_fp8, open_cuda_step
            from ..kernels.compilation import Kernels

            kernels = Kernels(self.brought_kernels())
            settings = self.as_stored(config, fp8=has_fp8())
            return open_cuda_step(self.config, self.weights, settings, kernels, self.kv_scales)
        from ..steps.cpu import open_cpu_step

        return open_cpu_step(self.config, self.weights, config, self.tiles)

    def as_stored(self, config: EngineConfig, *, fp8: bool = True) -> EngineConfig:
        """The settings of a card (`fp8`: one that has it), where what is stored in 8 bits stays so unless they say
        otherwise."""
        if self.config.quantization == "int8":
            return msgspec.structs.replace(config, quantize=config.quantize or "int8")
        if self.config.quantization != "fp8" or not fp8:
            return config
        kv_dtype = "fp8" if self.kv_scales else config.kv_dtype
        return msgspec.structs.replace(config, quantize=config.quantize or "fp8", kv_dtype=kv_dtype)

    def sized(self, config: EngineConfig) -> EngineConfig:
        """The settings, with the sizes that the checkpoint was made for where they name none."""
        return config

    def brought_kernels(self) -> KernelFile | None:
        """Those of this machine's card, where the checkpoint has any. Raises `ModelError`."""
        return None

    def open_padded(self, config: EngineConfig) -> PaddedBatch:
        with short_spins() if config.tune_process else nullcontext():
            from ..steps.padded import PaddedModel

        return PaddedModel(self.config, self.weights, config)
