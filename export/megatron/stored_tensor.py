"""A tensor on disk, described and not read: where its elements lie in a file, and in which steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import msgspec

from ...runtime.errors import ModelError

if TYPE_CHECKING:
    import torch

ELEMENT_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Of the element types that torch stores and a checkpoint of a decoder has, by torch's names."""


def is_counts(values: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether a value from a file is what a shape, strides or offsets can be."""
    return (
        isinstance(values, tuple)
        and len(values) <= 8
        and all(type(value) is int and 0 <= value < 2**48 for value in values)
    )


class StoredTensor(msgspec.Struct, frozen=True):
    """`start` is the byte of the first element, `strides` count elements. Parts of it are described without reading."""

    path: Path
    start: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]

    def narrow(self, axis: int, first: int, size: int) -> StoredTensor:
        """Positions [first, first + size) of an axis."""
        assert 0 <= first <= first + size <= self.shape[axis]
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        start = self.start + first * self.strides[axis] * ELEMENT_BYTES[self.dtype]
        return StoredTensor(self.path, start, self.dtype, shape, self.strides)

    def select(self, index: int) -> StoredTensor:
        """One position of the first axis, which goes."""
        one = self.narrow(0, index, 1)
        return StoredTensor(self.path, one.start, self.dtype, self.shape[1:], self.strides[1:])

    def read(self) -> torch.Tensor:
        """The elements, in memory of their own. Raises `ModelError` where the file has them no longer."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=dtype)
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        raw = torch.empty((last + 1) * dtype.itemsize, dtype=torch.uint8)
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                found = file.readinto(raw.numpy().data)
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read: {error}") from error
        if found != len(raw):
            raise ModelError(f"{self.path}: expected {len(raw)} bytes at byte {self.start}, found {found}")
        return raw.view(dtype).as_strided(self.shape, self.strides)
