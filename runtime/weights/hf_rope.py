"""Rotary settings of a `config.json`: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..model.config import ModelConfig, RopeScaling

if TYPE_CHECKING:
    from .hf_config import Settings

KINDS = ("default", "linear", "llama3")


def rope(settings: Settings, config: ModelConfig) -> ModelConfig:
    """`config` with its rotary fields set. Raises `ModelError` naming the field."""
    fields = settings.fields
    given = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise settings.error("rope_scaling", "an object", given)
    if any(isinstance(value, dict) for value in given.values()):
        raise settings.error("rope_parameters", "one object for all layers", given)
    theta = fields["rope_theta"] if fields.get("rope_theta") is not None else 10000.0
    reader = settings.within("rope_scaling", {"rope_theta": theta} | given)
    partial = given.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    if partial is not None and partial != 1.0:
        raise settings.error("partial_rotary_factor", "1.0 for this architecture", partial)
    if config.head_dim % 2:
        raise settings.error("head_dim", "an even number", config.head_dim)
    return msgspec.structs.replace(
        config, rope_theta=reader.positive("rope_theta"), rope_scaling=_scaling(reader, config.max_position)
    )


def _scaling(reader: Settings, max_position: int) -> RopeScaling | None:
    kind = reader.fields.get("rope_type") or reader.fields.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=reader.positive("factor"))
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=reader.positive("factor"),
            low_freq_factor=reader.positive("low_freq_factor"),
            high_freq_factor=reader.positive("high_freq_factor"),
            original_max_position=int(reader.positive("original_max_position_embeddings", max_position)),
        )
    raise reader.error("rope_type", f"one of {', '.join(KINDS)}", kind)
