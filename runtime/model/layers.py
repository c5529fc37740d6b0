"""Weights as the forward pass wants them: query, key and value in one matrix, gate and up in another, all packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec
import torch
from torch import Tensor

from ..errors import ModelError
from ..weights.layout import expected_shapes
from .config import ModelConfig
from .rope import head_order, rotary_tables

Pack = Callable[[Tensor, Tensor | None], dict[str, Tensor]]
PackRounded = Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]]
Packed = dict[str, dict[str, Tensor]]


class Weights(Protocol):
    """A checkpoint that is read tensor by tensor."""

    def names(self) -> Iterable[str]: ...

    def get(self, name: str) -> Tensor: ...


@runtime_checkable
class RoundedWeights(Weights, Protocol):
    """A checkpoint where matrices may be stored in 8 bits."""

    def rounded(self, name: str, kind: str) -> tuple[Tensor, Tensor] | None:
        """The matrix [out, in] of `kind` (I8 or F8_E4M3) and its scales [out]; None where it is stored otherwise."""
        ...


class Layers(msgspec.Struct, frozen=True):
    """Everything of a model that `forward` reads. `head` is the packed output layer."""

    shared: Packed
    layers: list[Packed]
    head: dict[str, Tensor]


def load_layers(
    model: ModelConfig,
    weights: Weights,
    pack: Pack,
    dtype: torch.dtype,
    context: int,
    pack_rounded: PackRounded | None = None,
    *,
    rounded_kind: str = "I8",
    device: torch.device | None = None,
    rope_dtype: torch.dtype | None = None,
) -> Layers:
    """Read, fuse and pack, one layer at a time, on `device` (None: the CPU).

    `pack_rounded` takes matrices that are stored as `rounded_kind` as they are; without it they are floats again.
    Raises `ModelError` naming the tensor that is missing or misshapen.
    """
    device = device or torch.device("cpu")
    loader = _Loader(model, weights, pack, dtype, pack_rounded, rounded_kind, device)
    return loader.load(context, rope_dtype or dtype)


@dataclass
class _Loader:
    model: ModelConfig
    weights: Weights
    pack: Pack
    dtype: torch.dtype
    pack_rounded: PackRounded | None
    rounded_kind: str
    device: torch.device

    def __post_init__(self) -> None:
        self.names, self.shapes = set(self.weights.names()), expected_shapes(self.model)
        self.stored: torch.dtype = getattr(torch, self.model.dtype)
        order = head_order(self.model)
        self.order = None if order.equal(torch.arange(len(order))) else order.to(self.device)

    def load(self, context: int, rope_dtype: torch.dtype) -> Layers:
        model = self.model
        embed = self.read("model.embed_tokens.weight")
        shared = {"embed": {"weight": embed}, "norm": self.norm("model.norm")}
        rope = rotary_tables(model, context, rope_dtype)
        shared["rope"] = {name: table.to(self.device) for name, table in rope.items()}
        if model.learned_positions:
            shared["positions"] = {"weight": self.read("model.embed_positions.weight")}
        layers = [self.layer(f"model.layers.{i}.") for i in range(model.num_layers)]
        head = self.pack(embed, None) if model.tied_embeddings else self.linear("", "lm_head")
        return Layers(shared, layers, head)

    def layer(self, prefix: str) -> Packed:
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        ups = ("gate_proj", "up_proj") if self.model.gated_mlp else ("up_proj",)
        layer = {
            "attention_norm": self.norm(prefix + "input_layernorm"),
            "mlp_norm": self.norm(prefix + "post_attention_layernorm"),
            "qkv": self.linear(attention, "q_proj", "k_proj", "v_proj"),
            "out": self.linear(attention, "o_proj"),
            "up": self.linear(mlp, *ups),
            "down": self.linear(mlp, "down_proj"),
        }
        if self.model.qk_norm:
            layer["qk_norm"] = self.qk_norm(attention)
        return layer

    def linear(self, prefix: str, *names: str) -> dict[str, Tensor]:
        """Several layers of the same inputs as one."""
        biased = [name for name in names if f"{prefix}{name}.bias" in self.shapes]
        biases = [self.ordered(name, self.read(f"{prefix}{name}.bias")) for name in biased]
        joint = joined(biases) if biases else None
        stored = [self.rounded(f"{prefix}{name}.weight") for name in names]
        if self.pack_rounded is not None and None not in stored:
            pairs = [pair for pair in stored if pair is not None]
            values, scales = (
                joined([self.ordered(name, part) for name, part in zip(names, parts, strict=True)])
                for parts in zip(*pairs, strict=True)
            )
            return self.pack_rounded(values, scales, joint)
        parts = [self.ordered(name, self.read(f"{prefix}{name}.weight")) for name in names]
        return self.pack(joined(parts), joint)

    def ordered(self, name: str, rows: Tensor) -> Tensor:
        """Rows of queries and keys in the order that the rotary kernel wants within each head."""
        if name not in ("q_proj", "k_proj") or self.order is None:
            return rows
        return rows.view(-1, len(self.order), *rows.shape[1:])[:, self.order].flatten(0, 1)

    def rounded(self, name: str) -> tuple[Tensor, Tensor] | None:
        if self.pack_rounded is None or not isinstance(self.weights, RoundedWeights):
            return None
        found = self.weights.rounded(name, self.rounded_kind)
        if found is None:
            return None
        self.check(name, found[0])
        return found[0].to(self.device), found[1].to(self.device)

    def qk_norm(self, prefix: str) -> dict[str, Tensor]:
        """One weight for each query head, then one for each key head [heads + kv_heads, head_dim]."""
        model = self.model
        q = self.ordered("q_proj", self.read(prefix + "q_norm.weight"))
        k = self.ordered("k_proj", self.read(prefix + "k_norm.weight"))
        return {"weight": torch.cat([q.expand(model.num_heads, -1), k.expand(model.num_kv_heads, -1)])}

    def norm(self, name: str) -> dict[str, Tensor]:
        kinds = [kind for kind in ("weight", "bias") if f"{name}.{kind}" in self.shapes]
        return {kind: self.read(f"{name}.{kind}") for kind in kinds}

    def read(self, name: str) -> Tensor:
        """What the checkpoint's own type holds of a tensor, whatever is computed in: so a quantised file, which gives
        float32, is the same model on every machine, and as an engine."""
        if name not in self.names:
            raise ModelError(f"{name}: expected in the checkpoint, not found")
        tensor = self.weights.get(name)
        self.check(name, tensor)
        return tensor.to(self.device, self.stored).to(self.dtype)

    def check(self, name: str, tensor: Tensor) -> None:
        wanted, found = self.shapes[name], tuple(tensor.shape)
        if found != wanted:
            shown = (" x ".join(map(str, shape)) for shape in (wanted, found))
            raise ModelError("{}: expected {}, got {}".format(name, *shown))


def joined(tensors: list[Tensor]) -> Tensor:
    """All rows in one tensor. Those that lie one after the other in memory are not copied."""
    first = tensors[0]
    storage, end = first.untyped_storage().data_ptr(), first.data_ptr()
    for tensor in tensors:
        if (
            tensor.untyped_storage().data_ptr() != storage
            or tensor.data_ptr() != end
            or not tensor.is_contiguous()
        ):
            return torch.cat(tensors)
        end += tensor.nbytes
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())
