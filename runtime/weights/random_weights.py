"""Weights that are drawn instead of read: a model's shape at its full speed, without its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from ..errors import ModelError
from ..model.config import ModelConfig
from .layout import expected_shapes

if TYPE_CHECKING:
    import torch

SCALE = 0.02


class RandomWeights:
    """`Weights` of a shape: norms are 1, biases 0, all else normal. A tensor depends on its name alone."""

    def __init__(self, source: str, config: ModelConfig) -> None:
        self.source = source
        self._shapes = expected_shapes(config)
        self._dtype = config.dtype
        self.device = "cpu"
        """Where tensors are drawn: on a card that takes milliseconds."""

    def names(self) -> Sequence[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        try:
            return self._shapes[name]
        except KeyError:
            raise ModelError(f"{self.source}: the tensor {name} is missing") from None

    def get(self, name: str) -> torch.Tensor:
        import torch

        shape, dtype = self.shape(name), getattr(torch, self._dtype)
        if "norm" in name or name.endswith(".bias"):
            value = 0.0 if name.endswith(".bias") else 1.0
            return torch.full(shape, value, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(crc32(name.encode()))
        return torch.empty(shape, dtype=dtype, device=self.device).normal_(0.0, SCALE, generator=generator)
