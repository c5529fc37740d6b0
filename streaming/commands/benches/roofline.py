"""What a decode step must read: all weights once, and the keys and values of every row."""

from __future__ import annotations

import msgspec

from ....runtime.config import EngineConfig
from ....runtime.cuda.plan import weight_bytes
from ....runtime.cuda.sizes import PAGE_TOKENS, page_elements
from ....runtime.model.config import ModelConfig


class StepBytes(msgspec.Struct, frozen=True):
    weights: int
    token: int
    """Keys and values of one token in all layers."""

    def of(self, batch: int, context: int) -> int:
        return self.weights + batch * context * self.token


def step_bytes(model: ModelConfig, config: EngineConfig) -> StepBytes:
    """Of embeddings that are not the output layer too, a step reads a row for each token: nothing beside the rest."""
    is_wide = config.dtype == "float32" or (config.dtype == "auto" and model.dtype == "float32")
    value = 4 if is_wide else 2
    linear = 1 if config.quantize else value
    weights = weight_bytes(model, value, linear)
    if not model.tied_embeddings or linear < value:
        weights -= model.vocab_size * model.hidden_size * value
    token = page_elements(model) // PAGE_TOKENS
    return StepBytes(weights, token * (1 if config.kv_dtype == "fp8" else value))
