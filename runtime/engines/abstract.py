"""The contract of every engine: Megatron-LM's `AbstractEngine` (one `generate` returning dicts), and what a stream
needs beside it: events, cancel, drain, stats, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ..backend import Backend
from ..errors import ModelError
from ..intake import Prompt
from ..stats import Stats


class AbstractEngine(ABC):
    """DynamicEngine's `generate`, `cancel`, `drain` and `close` are coroutines and its `stream` is an async iterator;
    StaticEngine's block. The words mean the same in both."""

    @abstractmethod
    def generate(self, prompts: Any, sampling_params: Any = None, **options: Any) -> Any:
        """Answers as dicts, in the order of the prompts."""

    @abstractmethod
    def stream(self, prompt: Prompt, sampling_params: Any = None, **options: Any) -> Any:
        """The events of one answer, as they come."""

    @abstractmethod
    def cancel(self, response_id: str) -> Any:
        """End a response now. True if it was open."""

    @abstractmethod
    def drain(self, timeout_s: float | None = None) -> Any:
        """Refuse new requests and wait until those accepted have ended."""

    @abstractmethod
    def stats(self) -> Stats:
        """A snapshot of counters; cheap, from any thread."""

    @abstractmethod
    def close(self) -> Any:
        """End what is open as cancelled, stop the worker, and give all memory back. Idempotent."""


def resolve(model: str | Path | Backend, *, random_weights: bool = False) -> Backend:
    """A model by name, or the backend as it was given. Raises `ModelError`."""
    if not isinstance(model, (str, Path)):
        if not callable(getattr(model, "open_step", None)):
            raise ModelError(f"model: expected a name, a path or a backend, got {type(model).__name__}")
        return model
    from ..weights.locate import open_backend

    return open_backend(model, random_weights=random_weights)
