"""Settings of an engine: frozen, checked once, never mutated."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from .checks import check_fields, expecting, integer, is_integer, is_number

_COUNT = expecting("an integer of at least 1", lambda value: is_integer(value) and value >= 1)
_COUNT_OR_NONE = expecting("None or an integer of at least 1", lambda value: is_integer(value) and value >= 1)
_SECONDS = expecting("a positive number of seconds", lambda value: is_number(value) and value > 0)

MOST_TOKENS = 2**31 - 1


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may set. Sizes are in bytes or tokens, times in seconds.

    Raises `InvalidField` where a value is out of its range.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the first NVIDIA card if there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["int8", "fp8"] | None = None
    """`int8`: weights and rows of 8 bits on the CPU, weights alone on a card. `fp8`: on a card."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """What keys and values are kept in; `auto`: what the model computes in."""
    mode: Literal["auto", "fast", "deterministic"] = "auto"
    """Whether a row's tokens may depend, within rounding, on its neighbours. `auto`: `fast` on a card; the CPU is
    always deterministic."""
    load_format: Literal["auto", "random"] = "auto"
    """`random`: weights are drawn, not read: the model's shape at its full speed, for measurements."""
    max_rows: Annotated[int | None, integer(1, 2**16)] = None
    """Rows that decode together; a request with n choices takes n. None: 32 on the CPU, 256 on a card."""
    max_batch_tokens: Annotated[int | None, integer(1, MOST_TOKENS)] = None
    """Prefill and decode tokens of one step; a longer prompt is cut into chunks. None: what suits the device."""
    max_context: Annotated[int | None, integer(1, MOST_TOKENS)] = None
    """Caps the model's own context length."""
    memory_bytes: Annotated[int | None, _COUNT_OR_NONE] = None
    """How much of the card's memory the engine may use, all told. None: what is free, less a margin."""
    kv_cache_bytes: Annotated[int | None, _COUNT_OR_NONE] = None
    """None: what the machine has free, within reason."""
    run_ahead: Annotated[int, integer(1, 8)] = 2
    """Launches in flight while one more is planned, on a card."""
    prefix_cache: bool = True
    max_queued: Annotated[int, _COUNT] = 1024
    """Requests that may wait for a seat; one more is refused at once."""
    max_queued_tokens: Annotated[int, _COUNT] = 4_000_000
    step_timeout_s: Annotated[float, _SECONDS] = 120.0
    """A step that takes longer means that the engine is stuck: every open request fails and readiness says so."""
    keep_finished_s: Annotated[float, _SECONDS] = 600.0
    """How long a finished response can still be followed by id."""
    keep_finished_bytes: Annotated[int, _COUNT] = 64 * 2**20
    num_threads: Annotated[int | None, _COUNT_OR_NONE] = None
    """Compute threads on the CPU; None leaves one core to the event loop."""
    tune_process: bool = True
    """Whether the engine may set the interpreter's switch interval and torch's threads while it is open."""

    def __post_init__(self) -> None:
        check_fields(self)
