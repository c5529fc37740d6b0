"""One safetensors file mapped into memory as a whole: tensors that lie side by side in it do so in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from .safetensors_weights import STORED_BYTES, SafetensorsWeights

if TYPE_CHECKING:
    import torch


class MappedTensors(SafetensorsWeights):
    """A tensor is a private view of the file: nothing is copied until it is written to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, STORED_BYTES)
        self._path = path
        self._bytes: torch.Tensor | None = None

    def get(self, name: str) -> torch.Tensor:
        import torch

        place = self.known(name)
        if self._bytes is None:
            try:
                size = self._path.stat().st_size
                self._bytes = torch.from_file(str(self._path), False, size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise ModelError(f"{self._path}: cannot be mapped: {error}") from error
        kind: torch.dtype = getattr(torch, place.dtype)
        stored = self._bytes[place.start : place.start + place.num_bytes]
        return (stored if place.start % kind.itemsize == 0 else stored.clone()).view(kind).view(place.shape)
