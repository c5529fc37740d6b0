"""Small decoders with random weights, as a mapping of tensors: enough to compute with, nothing to download."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from jitney.runtime.model.config import ModelConfig


class TensorWeights:
    """Tensors in memory as the loader reads a checkpoint; remembers what was read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.read: list[str] = []

    def names(self) -> Iterable[str]:
        return self.tensors

    def get(self, name: str) -> Tensor:
        self.read.append(name)
        return self.tensors[name]


def random_weights(model: ModelConfig, *, scale: float = 0.05, seed: int = 0) -> TensorWeights:
    """Weights of a plain Llama of this shape."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = model.hidden_size, model.intermediate_size
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}
    for i in range(model.num_layers):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        shapes |= {attention + "q_proj.weight": (q, hidden), attention + "o_proj.weight": (hidden, q)}
        shapes |= {attention + f"{name}_proj.weight": (kv, hidden) for name in "kv"}
        shapes |= {mlp + f"{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[mlp + "down_proj.weight"] = (hidden, inner)
    tensors = {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}
    names = [
        f"model.layers.{i}.{n}_layernorm"
        for i in range(model.num_layers)
        for n in ("input", "post_attention")
    ]
    for name in [*names, "model.norm"]:
        tensors[name + ".weight"] = 1 + torch.randn(hidden, generator=generator) * 0.1
    return TensorWeights(tensors)


def small_llama(**changes: object) -> ModelConfig:
    shape: dict[str, object] = {
        "vocab_size": 512,
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 32,
        "max_position": 2048,
        "tied_embeddings": True,
    }
    return ModelConfig(**(shape | changes))  # type: ignore[arg-type]
