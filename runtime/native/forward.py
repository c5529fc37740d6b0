"""The forward pass by own kernels: one call a step, which lets go of the interpreter lock.

The C side reads the weights, pages and arrays that are held here by their addresses, from the thread that calls and
from helpers that rest between calls. One thread calls, and closes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.layers import Layers, Packed, Weights, load_layers
from ..steps.forward import Computed, Run, owners_of, positions_of, scrub_pages, tokens_of, zero_pages
from ..steps.memory import PAGE_TOKENS, MemoryPlan
from ..steps.slots import Int64s, Slots
from .library import library
from .packing import Packer, tiled_bytes
from .records import (
    ACTIVATIONS,
    BatchRecord,
    LayerRecord,
    ModelRecord,
    address,
    linear_record,
    norm_record,
)


def why_not(model: ModelConfig, dtype: torch.dtype) -> str | None:
    """Why torch computes this model here; None where own kernels do."""
    sizes = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_heads x head_dim": model.num_heads * model.head_dim,
    }
    odd = [f"{name} {size} is no multiple of 64" for name, size in sizes.items() if size % 64]
    if dtype != torch.bfloat16:
        return f"own kernels compute in bfloat16 and int8, not in {str(dtype).removeprefix('torch.')}"
    if model.activation not in ACTIVATIONS:
        return f"own kernels know no {model.activation}"
    if model.head_dim % 32 or model.head_dim > 256:
        return f"head_dim {model.head_dim}: own kernels take multiples of 32 up to 256"
    if odd:
        return odd[0]
    return library().reason or None


class NativeForward:
    """`Forward`."""

    def __init__(
        self,
        model: ModelConfig,
        weights: Weights,
        plan: MemoryPlan,
        slots: Slots,
        num_threads: int,
        *,
        int8: bool,
    ) -> None:
        """Raises `ModelError` as `load_layers` does, `MemoryError` where threads or memory are short."""
        kernels = library().kernels
        assert kernels is not None
        self._kernels, self._model, self._slots, self._context = kernels, model, slots, plan.context
        packer = Packer(kernels, tiled_bytes(model, 1 if int8 else 2))
        pack, pack_rounded = (packer.pack_int8, packer.pack_rounded) if int8 else (packer.pack, None)
        layers = load_layers(
            model,
            weights,
            pack,
            torch.bfloat16,
            plan.context,
            pack_rounded,
            rope_dtype=torch.float32,
        )
        self._layers = _widened(layers)
        numbers = 2 * model.num_kv_heads * PAGE_TOKENS * model.head_dim
        self._pools = [zero_pages(plan.num_pages, numbers, torch.bfloat16) for _ in range(model.num_layers)]
        self._record = _model_record(model, self._layers, self._pools, int8)
        self._handle = _held(kernels.jitney_open(ctypes.byref(self._record), num_threads))

    def compute(self, runs: Sequence[Run], chosen: Sequence[int], num_sampled: int) -> Computed:
        tokens = np.array(tokens_of(self._slots, runs), dtype=np.int64)
        hidden = torch.empty(len(chosen), self._model.hidden_size)
        logits = torch.empty(num_sampled, self._model.vocab_size)
        sums = torch.empty(len(tokens))
        pages = self._slots.pages
        positions = positions_of(runs)
        assert tokens.min() >= 0 and tokens.max() < self._model.vocab_size and positions.max() < self._context
        arrays = [tokens, positions, owners_of(runs), pages, np.array(chosen, dtype=np.int64)]
        batch = BatchRecord(
            *(len(tokens), len(chosen), num_sampled, pages.shape[1]),
            *[array.ctypes.data for array in arrays],
            *(hidden.data_ptr(), logits.data_ptr(), sums.data_ptr()),
        )
        _held(self._kernels.jitney_forward(self._handle, ctypes.byref(batch)) == 0)
        return Computed(hidden, logits, sums.isfinite())

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.empty(len(hidden), self._model.vocab_size)
        hidden = hidden.contiguous()
        _held(
            self._kernels.jitney_logits(self._handle, hidden.data_ptr(), len(hidden), logits.data_ptr()) == 0
        )
        return logits

    def scrub(self, pages: Int64s) -> None:
        scrub_pages(self._pools, pages)

    def close(self) -> None:
        self._kernels.jitney_close(self._handle)
        self._pools.clear()
        del self._layers, self._record


def _held(result: int | None) -> int:
    if not result:
        raise MemoryError("own kernels: no memory or no threads are left")
    return result


def _widened(layers: Layers) -> Layers:
    """Norms as float32, as the kernels read them."""

    def widen(parts: Packed) -> Packed:
        return {
            name: {key: tensor.float() for key, tensor in part.items()} if name.endswith("norm") else part
            for name, part in parts.items()
        }

    return Layers(widen(layers.shared), [widen(layer) for layer in layers.layers], layers.head)


def _model_record(model: ModelConfig, layers: Layers, pools: list[Tensor], int8: bool) -> ModelRecord:
    shared = layers.shared
    records = [
        _layer_record(model, layer, pool, model.sliding_window if model.slides(i) else None)
        for i, (layer, pool) in enumerate(zip(layers.layers, pools, strict=True))
    ]
    return ModelRecord(
        *(model.hidden_size, model.num_heads, model.num_kv_heads, model.head_dim, model.intermediate_size),
        *(model.num_layers, int8, model.norm == "rms", model.gated_mlp, ACTIVATIONS.index(model.activation)),
        model.norm_eps,
        address(shared["embed"]["weight"]),
        address(shared["positions"]["weight"] if "positions" in shared else None),
        address(shared["rope"]["cos"]),
        address(shared["rope"]["sin"]),
        norm_record(shared["norm"]),
        linear_record(layers.head, model.vocab_size, model.hidden_size),
        (LayerRecord * len(records))(*records),
    )


def _layer_record(model: ModelConfig, layer: Packed, pool: Tensor, window: int | None) -> LayerRecord:
    hidden, inner = model.hidden_size, model.intermediate_size
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return LayerRecord(
        norm_record(layer["attention_norm"]),
        norm_record(layer["mlp_norm"]),
        linear_record(layer["qkv"], heads + 2 * kv, hidden),
        linear_record(layer["out"], hidden, heads),
        linear_record(layer["up"], inner * (1 + model.gated_mlp), hidden),
        linear_record(layer["down"], hidden, inner),
        address(layer["qk_norm"]["weight"] if "qk_norm" in layer else None),
        address(pool),
        window or 0,
    )
