"""Megatron's tensors under their Hugging Face names: the fused query, key and value taken apart, a gated MLP's halves,
padding of the vocabulary cut off, zero-centred norms made plain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from ...runtime.errors import ModelError
from ...runtime.model.config import ModelConfig
from .global_tensor import GlobalTensor, Rows

if TYPE_CHECKING:
    import torch


class _Part(msgspec.Struct, frozen=True):
    """Where a Hugging Face tensor comes from: rows of a Megatron tensor of the given shape, and one added to each."""

    tensor: str
    shape: tuple[int, ...]
    rows: tuple[Rows, ...]
    plus_one: bool = False


class MegatronWeights:
    """`Weights` over Megatron's tensors. Raises `ModelError` naming the tensor that is missing, of another shape, or
    belongs to nothing."""

    def __init__(
        self,
        source: str,
        config: ModelConfig,
        tensors: Mapping[str, GlobalTensor],
        *,
        padded_vocab: int,
        zero_centred: bool,
    ) -> None:
        self.source = source
        self._tensors = tensors
        names = _Names(config, padded_vocab, zero_centred, frozenset(tensors))
        self._parts = dict(names.parts())
        expected = {part.tensor: part.shape for part in self._parts.values()}
        for name, shape in expected.items():
            if name not in tensors:
                raise ModelError(f"{source}: the tensor {name} of shape {shape} is missing")
            if tensors[name].shape != shape:
                raise ModelError(f"{source}: tensor {name}: expected {shape}, found {tensors[name].shape}")
        for name in tensors:
            if name not in expected:
                raise ModelError(f"{source}: the tensor {name} belongs to nothing that the arguments name")

    def names(self) -> Sequence[str]:
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        part = self._part(name)
        return (sum(end - first for first, end in part.rows), *part.shape[1:])

    def get(self, name: str) -> torch.Tensor:
        part = self._part(name)
        tensor = self._tensors[part.tensor].read(part.rows)
        # One is added in float32: in 16 bits a small offset would be lost before it is rounded once.
        return (tensor.float() + 1).to(tensor.dtype) if part.plus_one else tensor

    def _part(self, name: str) -> _Part:
        try:
            return self._parts[name]
        except KeyError:
            raise ModelError(f"{self.source}: the tensor {name} is missing") from None


class _Names:
    """Both vocabularies side by side. Norms go by two names: of their own, or of the layer that computes them too."""

    def __init__(
        self, config: ModelConfig, padded_vocab: int, zero_centred: bool, found: frozenset[str]
    ) -> None:
        self.config, self.padded_vocab = config, padded_vocab
        self.zero_centred, self.found = zero_centred, found

    def parts(self) -> Iterator[tuple[str, _Part]]:
        config, hidden = self.config, self.config.hidden_size
        words = (self.padded_vocab, hidden)
        known = ((0, config.vocab_size),)
        yield "model.embed_tokens.weight", _Part("embedding.word_embeddings.weight", words, known)
        if config.learned_positions:
            positions = (config.max_position, hidden)
            yield "model.embed_positions.weight", _whole("embedding.position_embeddings.weight", positions)
        for layer in range(config.num_layers):
            for name, part in self._layer(f"decoder.layers.{layer}."):
                yield f"model.layers.{layer}.{name}", part
        yield from self._norm("model.norm", hidden, "decoder.final_layernorm.")
        if not config.tied_embeddings:
            yield "lm_head.weight", _Part("output_layer.weight", words, known)

    def _layer(self, prefix: str) -> Iterator[tuple[str, _Part]]:
        config, attention, mlp = self.config, prefix + "self_attention.", prefix + "mlp."
        hidden, inner = config.hidden_size, config.intermediate_size
        yield from self._norm(
            "input_layernorm", hidden, prefix + "input_layernorm.", attention + "linear_qkv.layer_norm_"
        )
        yield from self._norm(
            "post_attention_layernorm", hidden, prefix + "pre_mlp_layernorm.", mlp + "linear_fc1.layer_norm_"
        )
        fused = sum(size for _, size in self._heads()) * config.num_kv_heads
        for name, rows in self._qkv_rows():
            yield from _linear(
                f"self_attn.{name}", attention + "linear_qkv", (fused, hidden), rows, config.qkv_bias
            )
        out = (hidden, config.num_heads * config.head_dim)
        yield from _linear(
            "self_attn.o_proj", attention + "linear_proj", out, ((0, hidden),), config.attention_out_bias
        )
        if config.qk_norm:
            yield from self._norm("self_attn.q_norm", config.head_dim, attention + "q_layernorm.")
            yield from self._norm("self_attn.k_norm", config.head_dim, attention + "k_layernorm.")
        halves = ("gate_proj", "up_proj") if config.gated_mlp else ("up_proj",)
        first = (len(halves) * inner, hidden)
        for at, name in enumerate(halves):
            rows = ((at * inner, (at + 1) * inner),)
            yield from _linear(f"mlp.{name}", mlp + "linear_fc1", first, rows, config.mlp_bias)
        yield from _linear(
            "mlp.down_proj", mlp + "linear_fc2", (hidden, inner), ((0, hidden),), config.mlp_bias
        )

    def _heads(self) -> list[tuple[str, int]]:
        """What lies in one group of the fused matrix, in order, in rows."""
        config = self.config
        queries = config.num_heads // config.num_kv_heads * config.head_dim
        return [("q_proj", queries), ("k_proj", config.head_dim), ("v_proj", config.head_dim)]

    def _qkv_rows(self) -> Iterator[tuple[str, tuple[Rows, ...]]]:
        heads = self._heads()
        group, first = sum(size for _, size in heads), 0
        for name, size in heads:
            starts = [first + at * group for at in range(self.config.num_kv_heads)]
            yield name, tuple((start, start + size) for start in starts)
            first += size

    def _norm(self, name: str, size: int, *prefixes: str) -> Iterator[tuple[str, _Part]]:
        prefix = next((each for each in prefixes if each + "weight" in self.found), prefixes[0])
        yield f"{name}.weight", _whole(prefix + "weight", (size,), self.zero_centred)
        if self.config.norm == "layer":
            yield f"{name}.bias", _whole(prefix + "bias", (size,))


def _whole(tensor: str, shape: tuple[int, ...], plus_one: bool = False) -> _Part:
    return _Part(tensor, shape, ((0, shape[0]),), plus_one)


def _linear(
    name: str, tensor: str, shape: tuple[int, int], rows: tuple[Rows, ...], bias: bool
) -> Iterator[tuple[str, _Part]]:
    yield f"{name}.weight", _Part(f"{tensor}.weight", shape, rows)
    if bias:
        yield f"{name}.bias", _Part(f"{tensor}.bias", shape[:1], rows)
