"""The `quantization_config` of a Hugging Face directory: which of compressed-tensors' forms is read."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from .manifest import Narrowing

FORMATS: dict[str, tuple[Narrowing, str, int]] = {
    "int-quantized": ("int8", "int", 8),
    "pack-quantized": ("int4", "int", 4),
    "float-quantized": ("fp8", "float", 8),
}


def hf_quantization(source: str, fields: dict[str, Any]) -> Narrowing | None:
    """How the linear layers are stored; None where nothing is quantised.

    Raises `ModelError` naming `source` and the field, for every other form.
    """
    given = fields.get("quantization_config")
    if given is None:
        return None
    path = f"{source}: quantization_config"
    if not isinstance(given, dict) or given.get("quant_method") != "compressed-tensors":
        raise ModelError(f"{path}: expected quant_method 'compressed-tensors'; others are not served")
    if str(given.get("format")) not in FORMATS:
        served = ", ".join(FORMATS)
        raise ModelError(f"{path}.format: {str(given.get('format'))[:60]!r} is not served; served: {served}")
    narrowing, kind, bits = FORMATS[given["format"]]
    groups = given.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ModelError(f"{path}.config_groups: expected one group for all linear layers")
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ModelError(f"{path}.config_groups.weights: expected an object, found {str(weights)[:60]!r}")
    wanted = {"type": kind, "num_bits": bits, "symmetric": True, "dynamic": False}
    for field, value in wanted.items():
        if weights.get(field) != value:
            raise ModelError(
                f"{path}.config_groups.weights.{field}: expected {value!r}, found {weights.get(field)!r}"
            )
    if weights.get("strategy") != ("group" if narrowing == "int4" else "channel"):
        raise ModelError(f"{path}.config_groups.weights.strategy: found {weights.get('strategy')!r}")
    return narrowing
