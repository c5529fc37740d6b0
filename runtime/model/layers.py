"""Weights as the forward pass wants them: query, key and value in one matrix, gate and up in another, all packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from ..errors import ModelError
from .config import ModelConfig
from .rope import head_order, rotary_tables

Pack = Callable[[Tensor, Tensor | None], dict[str, Tensor]]
Packed = dict[str, dict[str, Tensor]]


class Weights(Protocol):
    """A checkpoint that is read tensor by tensor."""

    def names(self) -> Iterable[str]: ...

    def get(self, name: str) -> Tensor: ...


class Layers(msgspec.Struct, frozen=True):
    """Everything of a model that `forward` reads. `head` is the packed output layer."""

    shared: Packed
    layers: list[Packed]
    head: dict[str, Tensor]


def load_layers(model: ModelConfig, weights: Weights, pack: Pack, dtype: torch.dtype, context: int) -> Layers:
    """Read, fuse and pack, one layer at a time. Raises `ModelError` naming the tensor that is missing or misshapen."""
    return _Loader(model, weights, pack, dtype).load(context)


class _Loader:
    def __init__(self, model: ModelConfig, weights: Weights, pack: Pack, dtype: torch.dtype) -> None:
        self.model, self.weights, self.pack, self.dtype = model, weights, pack, dtype
        self.names = set(weights.names())

    def load(self, context: int) -> Layers:
        model = self.model
        embed = self.read("model.embed_tokens.weight", model.vocab_size, model.hidden_size)
        shared = {"embed": {"weight": embed}, "norm": self.norm("model.norm")}
        shared["rope"] = rotary_tables(model, context, self.dtype)
        if model.learned_positions:
            rows = self.read("model.embed_positions.weight", None, model.hidden_size)
            shared["positions"] = {"weight": rows}
        head = (
            embed
            if model.tied_embeddings
            else self.read("lm_head.weight", model.vocab_size, model.hidden_size)
        )
        layers = [self.layer(f"model.layers.{i}.") for i in range(model.num_layers)]
        return Layers(shared, layers, self.pack(head, None))

    def layer(self, prefix: str) -> Packed:
        model, attention, mlp = self.model, prefix + "self_attn.", prefix + "mlp."
        layer = {
            "attention_norm": self.norm(prefix + "input_layernorm"),
            "mlp_norm": self.norm(prefix + "post_attention_layernorm"),
            "qkv": self.pack(*self.qkv(attention)),
            "out": self.linear(
                attention + "o_proj",
                model.hidden_size,
                model.num_heads * model.head_dim,
                model.attention_out_bias,
            ),
            "down": self.linear(
                mlp + "down_proj", model.hidden_size, model.intermediate_size, model.mlp_bias
            ),
        }
        names = ("gate_proj", "up_proj") if model.gated_mlp else ("up_proj",)
        ups = [self.read(f"{mlp}{name}.weight", model.intermediate_size, model.hidden_size) for name in names]
        biases = [self.read(f"{mlp}{name}.bias", model.intermediate_size) for name in names if model.mlp_bias]
        layer["up"] = self.pack(torch.cat(ups), torch.cat(biases) if biases else None)
        if model.qk_norm:
            layer["qk_norm"] = self.qk_norm(attention)
        return layer

    def qkv(self, prefix: str) -> tuple[Tensor, Tensor | None]:
        model, dim = self.model, self.model.head_dim
        order = head_order(model)
        heads = {"q_proj": model.num_heads, "k_proj": model.num_kv_heads, "v_proj": model.num_kv_heads}
        matrices, biases = [], []
        for name, count in heads.items():
            matrix = self.read(f"{prefix}{name}.weight", count * dim, model.hidden_size).view(count, dim, -1)
            matrices.append((matrix if name == "v_proj" else matrix[:, order]).flatten(0, 1))
            if model.qkv_bias:
                bias = self.read(f"{prefix}{name}.bias", count * dim).view(count, dim)
                biases.append((bias if name == "v_proj" else bias[:, order]).flatten())
        return torch.cat(matrices), torch.cat(biases) if biases else None

    def qk_norm(self, prefix: str) -> dict[str, Tensor]:
        """One weight for each query head, then one for each key head [heads + kv_heads, head_dim]."""
        model, order = self.model, head_order(self.model)
        q = self.read(prefix + "q_norm.weight", model.head_dim)[order]
        k = self.read(prefix + "k_norm.weight", model.head_dim)[order]
        return {"weight": torch.cat([q.expand(model.num_heads, -1), k.expand(model.num_kv_heads, -1)])}

    def norm(self, name: str) -> dict[str, Tensor]:
        tensors = {"weight": self.read(name + ".weight", self.model.hidden_size)}
        if self.model.norm == "layer" and name + ".bias" in self.names:
            tensors["bias"] = self.read(name + ".bias", self.model.hidden_size)
        return tensors

    def linear(self, name: str, outputs: int, inputs: int, bias: bool) -> dict[str, Tensor]:
        weight = self.read(name + ".weight", outputs, inputs)
        return self.pack(weight, self.read(name + ".bias", outputs) if bias else None)

    def read(self, name: str, *shape: int | None) -> Tensor:
        if name not in self.names:
            raise ModelError(f"{name}: expected in the checkpoint, not found")
        tensor = self.weights.get(name)
        if len(tensor.shape) != len(shape) or any(
            w not in (None, g) for w, g in zip(shape, tensor.shape, strict=True)
        ):
            wanted = " x ".join("any" if size is None else str(size) for size in shape)
            raise ModelError(f"{name}: expected {wanted}, got {' x '.join(map(str, tensor.shape))}")
        return tensor.to(self.dtype)
