"""Settings of an engine: frozen, checked once, never mutated."""

from __future__ import annotations

from typing import Literal

import msgspec

from .errors import InvalidField


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may set. Sizes are in bytes or tokens, times in seconds.

    Raises `InvalidField` where a value is out of its range.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["int8"] | None = None
    max_rows: int = 32
    """Rows that decode together. A request with n choices takes n."""
    max_batch_tokens: int = 512
    """Prefill and decode tokens of one step; a longer prompt is cut into chunks."""
    max_context: int | None = None
    """Caps the model's own context length."""
    kv_cache_bytes: int | None = None
    """None: what the machine has free, within reason."""
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
            "max_rows",
            "max_batch_tokens",
            "max_queued",
            "max_queued_tokens",
            "keep_finished_bytes",
        ):
            if not _is_count(getattr(self, field)):
                raise InvalidField(field, "an integer of at least 1", getattr(self, field))
        for field in ("max_context", "kv_cache_bytes", "num_threads"):
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
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise InvalidField("dtype", "'auto', 'float32' or 'bfloat16'", self.dtype)
        if self.quantize not in (None, "int8"):
            raise InvalidField("quantize", "None or 'int8'", self.quantize)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
