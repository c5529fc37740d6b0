"""A checkpoint's weights on the device, each matrix as its kernels want it."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from ..config import EngineConfig
from ..kernels.narrow import ROWS_AT_ONCE, narrowed_weight
from ..model.config import ModelConfig
from ..model.layers import Layers, Pack, Weights, load_layers
from ..model.linear_int8 import rounded
from ..weights.random_weights import RandomWeights
from .sizes import Sizes
from .streamed import CardCopies, PlacedWeights, StreamedWeights


def load_on(
    device: torch.device,
    model: ModelConfig,
    weights: Weights,
    config: EngineConfig,
    sizes: Sizes,
    dtype: torch.dtype,
) -> Layers:
    """Streamed to a card where they lie in files that allow it. Raises `ModelError` naming the tensor that is missing
    or misshapen."""
    pack, kind = _PACKED[config.quantize]
    with ExitStack() as stack:
        if isinstance(weights, RandomWeights):
            weights.device = str(device)
        elif device.type == "cuda" and isinstance(weights, PlacedWeights):
            weights = stack.enter_context(StreamedWeights(weights, CardCopies(device)))
        layers = load_layers(
            model, weights, pack, dtype, sizes.context, _pack_stored if kind else None,
            rounded_kind=kind, device=device, rope_dtype=torch.float32,
        )  # fmt: skip
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what narrowing wanted for a moment is not in the plan
    return layers


def _pack(weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _pack_fp8(weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return _pack_stored(*narrowed_weight(weight), bias)


def _pack_int8(weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    values, scale = zip(*map(rounded, weight.split(ROWS_AT_ONCE)), strict=True)
    return _pack_stored(torch.cat(values), torch.cat(scale), bias)


def _pack_stored(
    values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    return {**_pack(values, bias), "scale": scale}


_PACKED: dict[str | None, tuple[Pack, str]] = {
    None: (_pack, ""),
    "fp8": (_pack_fp8, "F8_E4M3"),
    "int8": (_pack_int8, "I8"),
}
"""How a matrix lies on the card, and under which type a checkpoint may store it so."""
