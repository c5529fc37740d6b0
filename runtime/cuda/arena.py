"""What the device remembers by slot, at fixed addresses: one tensor of 32-bit words, cut into named regions.

Captured graphs read the regions in place. The host changes them only by patches, lists of (word, value) that one
kernel applies in stream order, so no graph ever sees half a change.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .sizes import region_words

Words = NDArray[np.int32]


class Arena:
    """Declare regions, `allocate` once, then take `tensor` views. A region starts where `REGION_WORDS` begin anew."""

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._strides: dict[str, int] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._words: Tensor | None = None
        self.num_words = 0

    def region(self, name: str, *shape: int, dtype: torch.dtype = torch.int32) -> None:
        """Add a region of 32-bit values (int32 or float32), zeros at first."""
        assert self._words is None and name not in self._starts and dtype.itemsize == 4
        self._starts[name], self._shapes[name], self._dtypes[name] = self.num_words, shape, dtype
        self._strides[name] = prod(shape[1:])
        self.num_words += region_words(shape)

    def allocate(self, device: torch.device) -> None:
        self._words = torch.zeros(self.num_words, dtype=torch.int32, device=device)

    @property
    def words(self) -> Tensor:
        assert self._words is not None
        return self._words

    def tensor(self, name: str) -> Tensor:
        """The region's values on the device, in its shape and type."""
        start, shape = self._starts[name], self._shapes[name]
        return self.words[start : start + prod(shape)].view(self._dtypes[name]).view(shape)

    def start(self, name: str) -> int:
        return self._starts[name]

    def stride(self, name: str) -> int:
        """Words from one entry of the first axis to the next."""
        return self._strides[name]

    def host_dtype(self, name: str) -> type[np.int32 | np.float32]:
        return np.float32 if self._dtypes[name] == torch.float32 else np.int32


class Patch:
    """Changes to an arena, gathered on the host. Later writes to a word win only over those of earlier patches: within
    one patch a word is written once."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._offsets: list[Words] = []
        self._values: list[Words] = []
        self.num_words = 0

    def write(self, name: str, entry: int, values: ArrayLike, *, at: int = 0) -> None:
        """Write `values` (integers, or floats for a float region) into an entry of the first axis, from its element
        `at` on; or into several entries, if they fill them."""
        words, stride = self._words(name, values), self._arena.stride(name)
        assert at + words.size <= stride or (at == 0 and words.size % stride == 0), name
        start = self._arena.start(name) + entry * stride + at
        self._append(np.arange(start, start + words.size, dtype=np.int32), words)

    def scatter(self, name: str, entry: int, places: ArrayLike, values: ArrayLike) -> None:
        """Write `values` to the named places of an entry of the first axis, each place at most once."""
        words, offsets, stride = (
            self._words(name, values),
            np.asarray(places, dtype=np.int32),
            self._arena.stride(name),
        )
        assert words.size == offsets.size and (not words.size or offsets.max() < stride), name
        self._append(offsets + np.int32(self._arena.start(name) + entry * stride), words)

    def _words(self, name: str, values: ArrayLike) -> Words:
        return np.asarray(values, dtype=self._arena.host_dtype(name)).reshape(-1).view(np.int32)

    def _append(self, offsets: Words, words: Words) -> None:
        self._offsets.append(offsets)
        self._values.append(words)
        self.num_words += words.size

    def pieces(self, most: int) -> Iterator[tuple[Words, Words]]:
        """Offsets and values, at most so many at a time; nothing for an empty patch."""
        if not self.num_words:
            return
        offsets, values = np.concatenate(self._offsets), np.concatenate(self._values)
        for at in range(0, self.num_words, most):
            yield offsets[at : at + most], values[at : at + most]
