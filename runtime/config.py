"""Settings of an engine: frozen, checked once, never mutated."""

from __future__ import annotations

from typing import Literal

import msgspec

from .errors import InvalidField

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16"),
    "quantize": (None, "int8", "fp8"),
    "kv_dtype": ("auto", "fp8"),
    "mode": ("auto", "fast", "deterministic"),
    "load_format": ("auto", "random"),
}


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may set. Sizes are in bytes or tokens, times in seconds.

    Raises `InvalidField` where a value is out of its range.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the first NVIDIA card if there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["int8", "fp8"] | None = None
    """`int8` on the CPU, `fp8` on a card."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """What keys and values are kept in; `auto`: what the model computes in."""
    mode: Literal["auto", "fast", "deterministic"] = "auto"
    """Whether a row's tokens may depend, within rounding, on its neighbours. `auto`: `fast` on a card; the CPU is
    always deterministic."""
    load_format: Literal["auto", "random"] = "auto"
    """`random`: weights are drawn, not read: the model's shape at its full speed, for measurements."""
    max_rows: int | None = None
    """Rows that decode together; a request with n choices takes n. None: 32 on the CPU, 256 on a card."""
    max_batch_tokens: int | None = None
    """Prefill and decode tokens of one step; a longer prompt is cut into chunks. None: what suits the device."""
    max_context: int | None = None
    """Caps the model's own context length."""
    memory_bytes: int | None = None
    """How much of the card's memory the engine may use, all told. None: what is free, less a margin."""
    kv_cache_bytes: int | None = None
    """None: what the machine has free, within reason."""
    run_ahead: int = 2
    """Launches in flight while one more is planned, on a card."""
    prefix_cache: bool = True
    max_queued: int = 1024
    """Requests that may wait for a seat; one more is refused at once."""
    max_queued_tokens: int = 4_000_000
    step_timeout_s: float = 120.0
    """A step that takes longer means that the engine is stuck: every open request fails and readiness says so."""
    keep_finished_s: float = 600.0
    """How long a finished response can still be followed by id."""
    keep_finished_bytes: int = 64 * 2**20
    num_threads: int | None = None
    """Compute threads on the CPU; None leaves one core to the event loop."""
    tune_process: bool = True
    """Whether the engine may set the interpreter's switch interval and torch's threads while it is open."""

    def __post_init__(self) -> None:
        for field in (
            "max_queued",
            "max_queued_tokens",
            "keep_finished_bytes",
        ):
            if not _is_count(getattr(self, field)):
                raise InvalidField(field, "an integer of at least 1", getattr(self, field))
        for field in (
            "max_rows",
            "max_batch_tokens",
            "max_context",
            "memory_bytes",
            "kv_cache_bytes",
            "num_threads",
        ):
            value = getattr(self, field)
            if value is not None and not _is_count(value):
                raise InvalidField(field, "None or an integer of at least 1", value)
        for field in ("step_timeout_s", "keep_finished_s"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise InvalidField(field, "a positive number of seconds", value)
        for field in ("prefix_cache", "tune_process"):
            if not isinstance(getattr(self, field), bool):
                raise InvalidField(field, "true or false", getattr(self, field))
        if not _is_count(self.run_ahead) or self.run_ahead > 8:
            raise InvalidField("run_ahead", "an integer from 1 to 8", self.run_ahead)
        for field, values in _CHOICES.items():
            value = getattr(self, field)
            if value not in values:
                known = [repr(known) for known in values]
                raise InvalidField(field, f"{', '.join(known[:-1])} or {known[-1]}", value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
