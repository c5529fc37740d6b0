"""One safetensors file mapped into memory as a whole: tensors that lie side by side in it do so in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from .safetensors_weights import STORED_BYTES, TORCH_NAMES, Entry, Place, placed, read_header

if TYPE_CHECKING:
    import torch


class MappedTensors:
    """Raises `ModelError` naming the file and the tensor. A tensor is a private view of the file: nothing is copied
    until it is written to."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._path = path
        self._entries, self._start = read_header(path, STORED_BYTES)
        self._bytes: torch.Tensor | None = None

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """As safetensors spells it."""
        return self._entry(name).dtype

    def get(self, name: str) -> torch.Tensor:
        import torch

        entry = self._entry(name)
        if self._bytes is None:
            try:
                size = self._path.stat().st_size
                self._bytes = torch.from_file(str(self._path), False, size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise ModelError(f"{self._path}: cannot be mapped: {error}") from error
        kind: torch.dtype = getattr(torch, TORCH_NAMES[entry.dtype])
        start, end = (self._start + offset for offset in entry.data_offsets)
        stored = self._bytes[start:end]
        return (stored if start % kind.itemsize == 0 else stored.clone()).view(kind).view(entry.shape)

    def place(self, name: str) -> Place:
        return placed(self._path, self._start, self._entry(name))

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelError(f"{self.source}: the tensor {name} is missing") from None
