"""What every reader of weights offers: tensors by their Hugging Face Llama names, one at a time, on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..errors import ModelError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


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


class Listed(Generic[T]):
    """The base of readers: what is known of each tensor before it is read."""

    def __init__(self, source: str, tensors: Mapping[str, T]) -> None:
        self.source = source
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def known(self, name: str) -> T:
        """Raises `ModelError` where there is no such tensor."""
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelError(f"{self.source}: the tensor {name} is missing") from None
