"""Sampling defaults and end ids, from `generation_config.json` and what stands beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..backend import GenerationDefaults
from ..checks import is_integer, is_number
from ..errors import ModelError

_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-6, 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 10.0),
}


def generation_defaults(source: str, settings: dict[str, Any], *more_end_ids: Any) -> GenerationDefaults:
    """`more_end_ids` come from the configuration and the tokenizer: an id, a list of ids, or None.

    Raises `ModelError` naming `source` and the field.
    """
    found: dict[str, Any] = {}
    for field, (low, high) in _RANGES.items():
        value = settings.get(field)
        if value is None:
            continue
        number = is_integer(value) if field == "top_k" else is_number(value)
        if not number or not low <= value <= high:
            raise ModelError(f"{source}: {field}: expected a number from {low} to {high}, found {value!r}")
        found[field] = value
    end_ids = _ids(source, [settings.get("eos_token_id"), *more_end_ids])
    return GenerationDefaults(end_token_ids=tuple(dict.fromkeys(end_ids)), **found)


def _ids(source: str, groups: Iterable[Any]) -> Iterable[int]:
    for group in groups:
        for value in group if isinstance(group, list) else [group]:
            if value is None:
                continue
            if not is_integer(value) or value < 0:
                raise ModelError(f"{source}: eos_token_id: expected token ids, found {value!r}")
            yield value
