"""The contract of every engine: Megatron-LM's `AbstractEngine` (one `generate` returning dicts), and what a stream
needs beside it: events, cancel, drain, stats, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import msgspec

from ..backend import Backend
from ..intake import Prompt


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A moment of an engine, from the engine's own counters.

    `step_age_s` is the time since the worker last finished a step or found itself idle: it grows while a step hangs.
    """

    state: str
    """starting, ready, draining, closed or dead."""
    waiting: int = 0
    running: int = 0
    kv_pages_total: int = 0
    kv_pages_used: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    finished: dict[str, int] = {}
    """Choices ended, by finish reason."""
    late_events: int = 0
    """Events that arrived after their response was sealed, and were discarded."""
    steps: int = 0
    step_age_s: float = 0.0


class AbstractEngine(ABC):
    """DynamicEngine's `generate`, `drain` and `close` are coroutines and its `stream` is an async iterator;
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


def resolve(model: str | Path | Backend) -> Backend:
    """A model by name, or the backend as it was given. Raises `ModelError`."""
    if not isinstance(model, (str, Path)):
        return model
    from ..weights.locate import open_backend

    return open_backend(model)
