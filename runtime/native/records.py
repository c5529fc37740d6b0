"""The C structs of native.h, field by field, filled from tensors.

A record holds addresses only: whoever fills one keeps the tensors.
"""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = ("silu", "gelu_tanh", "relu", "squared_relu")
"""In the order of the C enumeration."""


class LinearRecord(Structure):
    _fields_ = [
        ("words", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
    ]


class NormRecord(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class LayerRecord(Structure):
    _fields_ = [
        ("attention_norm", NormRecord),
        ("mlp_norm", NormRecord),
        ("qkv", LinearRecord),
        ("out", LinearRecord),
        ("up", LinearRecord),
        ("down", LinearRecord),
        ("qk_norm", c_void_p),
        ("pool", c_void_p),
        ("window", c_int64),
    ]


class ModelRecord(Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("hidden", "heads", "kv_heads", "dim", "inner", "num_layers")],
        *[(name, c_int64) for name in ("quantized", "rms", "gated", "activation")],
        ("eps", c_float),
        *[(name, c_void_p) for name in ("embeddings", "learned_positions", "cos", "sin")],
        ("norm", NormRecord),
        ("head", LinearRecord),
        ("layers", POINTER(LayerRecord)),
    ]


class BatchRecord(Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("num_tokens", "num_chosen", "num_sampled", "pages_per_owner")],
        *[(name, c_void_p) for name in ("tokens", "positions", "owners", "pages", "chosen")],
        *[(name, c_void_p) for name in ("hidden", "logits", "sums")],
    ]


def linear_record(layer: dict[str, Tensor], outputs: int, inputs: int) -> LinearRecord:
    """`layer` as packing.py gives it."""
    return LinearRecord(*[address(layer.get(name)) for name in ("weight", "scale", "bias")], outputs, inputs)


def norm_record(norm: dict[str, Tensor]) -> NormRecord:
    return NormRecord(*[address(norm.get(name)) for name in ("weight", "bias")])


def address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()
