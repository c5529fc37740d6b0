"""The way back from tensor-parallel parts to the tensor that they were cut from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jitney.runtime.model.config import ModelConfig


def joined(config: ModelConfig, name: str, parts: Sequence[Tensor]) -> Tensor:
    """Of all ranks' parts, in order."""
    module, _, kind = name.rpartition(".")
    layer = module.rpartition(".")[2]
    if layer in ("o_proj", "down_proj") and kind == "weight":
        return torch.cat(list(parts), 1)
    if layer in ("k_proj", "v_proj"):
        return torch.cat(list(parts[:: max(1, len(parts) // config.num_kv_heads)]))
    if layer in ("embed_tokens", "lm_head"):
        return torch.cat(list(parts))[: config.vocab_size]
    return torch.cat(list(parts)) if layer in ("q_proj", "gate_proj", "up_proj") else parts[0]
