"""What every reader of weights offers: tensors by their Hugging Face Llama names, one at a time, on demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Weights(Protocol):
    """A checkpoint's tensors. Nothing is read until `get`; `shape` comes from headers alone."""

    source: str
    """The file or directory, for messages."""

    def names(self) -> Sequence[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises `ModelError` where there is no such tensor."""
        ...

    def get(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, in its stored type (quantised ones as float32). Raises `ModelError`."""
        ...
