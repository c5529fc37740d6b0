"""Weights that are drawn instead of read: a model's shape at its full speed, without its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from ..model.config import ModelConfig
from .layout import expected_shapes
from .source import Listed

if TYPE_CHECKING:
    import torch

SCALE = 0.02


class RandomWeights(Listed[tuple[int, ...]]):
    """`Weights` of a shape: norms are 1, biases 0, all else normal. A tensor depends on its name alone."""

    def __init__(self, source: str, config: ModelConfig) -> None:
        super().__init__(source, expected_shapes(config))
        self._dtype = config.dtype
        self.device = "cpu"
        """Where tensors are drawn: on a card that takes milliseconds."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.known(name)

    def get(self, name: str) -> torch.Tensor:
        import torch

        shape, dtype = self.shape(name), getattr(torch, self._dtype)
        if "norm" in name or name.endswith(".bias"):
            value = 0.0 if name.endswith(".bias") else 1.0
            return torch.full(shape, value, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(crc32(name.encode()))
        return torch.empty(shape, dtype=dtype, device=self.device).normal_(0.0, SCALE, generator=generator)
