"""Weights as the forward pass wants them: query, key and value in one matrix, gate and up in another, all packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import msgspec
import torch
from torch import Tensor

from ..errors import ModelError
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


class _Loader:
    def __init__(
        self,
        model: ModelConfig,
        weights: Weights,
        pack: Pack,
        dtype: torch.dtype,
        pack_rounded: PackRounded | None,
        rounded_kind: str,
        device: torch.device,
    ) -> None:
        self.model, self.weights, self.pack, self.rounded_kind = model, weights, pack, rounded_kind
        self.dtype, self.pack_rounded, self.device = dtype, pack_rounded, device
        self.names = set(weights.names())
        order = head_order(model)
        self.order = None if order.equal(torch.arange(len(order))) else order.to(device)

    def load(self, context: int, rope_dtype: torch.dtype) -> Layers:
        model = self.model
        embed = self.read("model.embed_tokens.weight", model.vocab_size, model.hidden_size)
        shared = {"embed": {"weight": embed}, "norm": self.norm("model.norm")}
        rope = rotary_tables(model, context, rope_dtype)
        shared["rope"] = {name: table.to(self.device) for name, table in rope.items()}
        if model.learned_positions:
            rows = self.read("model.embed_positions.weight", None, model.hidden_size)
            shared["positions"] = {"weight": rows}
        layers = [self.layer(f"model.layers.{i}.") for i in range(model.num_layers)]
        head = {"lm_head": model.vocab_size}
        packed = self.pack(embed, None) if model.tied_embeddings else self.linear("", head, model.hidden_size)
        return Layers(shared, layers, packed)

    def layer(self, prefix: str) -> Packed:
        model, attention, mlp = self.model, prefix + "self_attn.", prefix + "mlp."
        hidden, inner = model.hidden_size, model.intermediate_size
        q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        ups = {"gate_proj": inner, "up_proj": inner} if model.gated_mlp else {"up_proj": inner}
        layer = {
            "attention_norm": self.norm(prefix + "input_layernorm"),
            "mlp_norm": self.norm(prefix + "post_attention_layernorm"),
            "qkv": self.linear(
                attention, {"q_proj": q, "k_proj": kv, "v_proj": kv}, hidden, bias=model.qkv_bias
            ),
            "out": self.linear(attention, {"o_proj": hidden}, q, bias=model.attention_out_bias),
            "up": self.linear(mlp, ups, hidden, bias=model.mlp_bias),
            "down": self.linear(mlp, {"down_proj": hidden}, inner, bias=model.mlp_bias),
        }
        if model.qk_norm:
            layer["qk_norm"] = self.qk_norm(attention)
        return layer

    def linear(
        self, prefix: str, outputs: dict[str, int], inputs: int, *, bias: bool = False
    ) -> dict[str, Tensor]:
        """Several layers of the same inputs, `outputs` rows of each, as one."""
        biases = [self.ordered(n, self.read(f"{prefix}{n}.bias", r)) for n, r in outputs.items() if bias]
        joint = joined(biases) if biases else None
        stored = [self.rounded(f"{prefix}{name}.weight", rows, inputs) for name, rows in outputs.items()]
        if self.pack_rounded is not None and None not in stored:
            pairs = [pair for pair in stored if pair is not None]
            values, scales = (
                joined([self.ordered(name, part) for name, part in zip(outputs, parts, strict=True)])
                for parts in zip(*pairs, strict=True)
            )
            return self.pack_rounded(values, scales, joint)
        parts = [self.ordered(n, self.read(f"{prefix}{n}.weight", r, inputs)) for n, r in outputs.items()]
        return self.pack(joined(parts), joint)

    def ordered(self, name: str, rows: Tensor) -> Tensor:
        """Rows of queries and keys in the order that the rotary kernel wants within each head."""
        if name not in ("q_proj", "k_proj") or self.order is None:
            return rows
        return rows.view(-1, len(self.order), *rows.shape[1:])[:, self.order].flatten(0, 1)

    def rounded(self, name: str, *shape: int) -> tuple[Tensor, Tensor] | None:
        if self.pack_rounded is None or not isinstance(self.weights, RoundedWeights):
            return None
        found = self.weights.rounded(name, self.rounded_kind)
        if found is None:
            return None
        _check(name, found[0], shape)
        return found[0].to(self.device), found[1].to(self.device)

    def qk_norm(self, prefix: str) -> dict[str, Tensor]:
        """One weight for each query head, then one for each key head [heads + kv_heads, head_dim]."""
        model = self.model
        q = self.ordered("q_proj", self.read(prefix + "q_norm.weight", model.head_dim))
        k = self.ordered("k_proj", self.read(prefix + "k_norm.weight", model.head_dim))
        return {"weight": torch.cat([q.expand(model.num_heads, -1), k.expand(model.num_kv_heads, -1)])}

    def norm(self, name: str) -> dict[str, Tensor]:
        tensors = {"weight": self.read(name + ".weight", self.model.hidden_size)}
        if self.model.norm == "layer" and name + ".bias" in self.names:
            tensors["bias"] = self.read(name + ".bias", self.model.hidden_size)
        return tensors

    def read(self, name: str, *shape: int | None) -> Tensor:
        if name not in self.names:
            raise ModelError(f"{name}: expected in the checkpoint, not found")
        tensor = self.weights.get(name)
        _check(name, tensor, shape)
        return tensor.to(self.device, self.dtype)


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


def _check(name: str, tensor: Tensor, shape: Sequence[int | None]) -> None:
    fits = len(tensor.shape) == len(shape)
    if not fits or any(w not in (None, g) for w, g in zip(shape, tensor.shape, strict=True)):
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise ModelError(f"{name}: expected {wanted}, got {' x '.join(map(str, tensor.shape))}")
