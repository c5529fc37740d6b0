"""An engine's settings: each refused by name, each good edge accepted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jitney.runtime.config import MOST_TOKENS, EngineConfig
from jitney.runtime.errors import InvalidField

POSITIVE = ("run_ahead", "max_queued", "max_queued_tokens", "keep_finished_bytes")
OPTIONAL = ("max_rows", "max_batch_tokens", "max_context", "memory_bytes", "kv_cache_bytes", "num_threads")
CHOICES: dict[str, tuple[Any, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16"),
    "quantize": (None, "int8", "fp8"),
    "kv_dtype": ("auto", "fp8"),
    "mode": ("auto", "fast", "deterministic"),
    "load_format": ("auto", "random"),
}
SECONDS = ("step_timeout_s", "keep_finished_s")
FLAGS = ("prefix_cache", "tune_process")

BAD: list[tuple[str, Any]] = [
    *((field, value) for field in POSITIVE + OPTIONAL for value in (0, -1, 1.5, True, "1", [], math.nan)),
    *((field, None) for field in POSITIVE + SECONDS + FLAGS),
    *((field, value) for field in SECONDS for value in (0, -1.0, True, "1", math.nan)),
    *((field, value) for field in FLAGS for value in (0, 1, "yes")),
    *((field, value) for field in CHOICES for value in ("float16", "", 8, [])),
    *((field, None) for field in CHOICES if field != "quantize"),
    ("run_ahead", 9),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidField) as refused:
        EngineConfig(**{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, 1) for field in POSITIVE + OPTIONAL),
        *((field, None) for field in OPTIONAL),
        *((field, value) for field in SECONDS for value in (1, 0.001, math.inf)),
        *((field, value) for field in FLAGS for value in (True, False)),
        *((field, value) for field, values in CHOICES.items() for value in values),
    ],
)
def test_a_good_value_is_taken(field: str, value: Any) -> None:
    assert getattr(EngineConfig(**{field: value}), field) == value


def test_every_field_is_checked() -> None:
    assert {field for field, _ in BAD} == set(EngineConfig.__struct_fields__)


def test_the_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        EngineConfig().max_rows = 1  # type: ignore[misc]


def test_sizes_have_an_end() -> None:
    for field, most in (("max_rows", 2**16), ("max_context", MOST_TOKENS), ("max_batch_tokens", MOST_TOKENS)):
        EngineConfig(**{field: most})
        with pytest.raises(InvalidField, match=f"{field}: expected an integer from 1 to {most}"):
            EngineConfig(**{field: most + 1})
