"""Which tensors are written, in the order in which a start reads them, before any of them exists.

A stack is one or more tensors of the same kind and width that lie on top of each other in memory: query, key and
value; gate and up. Written one after the other they are the fused tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from ..runtime.errors import ModelError
from ..runtime.model.config import ModelConfig
from ..runtime.weights.layout import expected_shapes
from ..runtime.weights.manifest import Narrowing
from .shards import Sharding

FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "F8_E4M3": 1, "I32": 4, "I64": 8}


class Slot(msgspec.Struct, frozen=True):
    """One tensor: its Hugging Face name, its type as safetensors spells it, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    def cut(self, sharding: Sharding) -> Slot:
        """What each rank has of it."""
        return msgspec.structs.replace(self, shape=sharding.shape(self.name, self.shape))


Stack = tuple[Slot, ...]


def stacks(
    config: ModelConfig,
    narrowing: Narrowing | None,
    *,
    narrow_head: bool = False,
    group: int = 0,
    whole: bool = False,
) -> list[Stack]:
    """Everything of a model, in load order. With `narrow_head` the output layer is narrowed too. `group`: how many
    columns of an int4 matrix share a scale. `whole`: an fp8 matrix has no scale beside it."""
    shapes = expected_shapes(config)
    ordered = []
    for names in _load_order(config):
        present = [name for name in names if name in shapes]
        matrix = present and len(shapes[present[0]]) == 2 and ".layers." in present[0]
        narrow = narrowing if matrix or (narrow_head and names == ("lm_head.weight",)) else None
        kinds = [_stored(name, shapes[name], config, narrow, group, whole) for name in present]
        ordered += [stack for stack in zip(*kinds, strict=True)]
    assert {slot.name.rpartition(".")[0] for stack in ordered for slot in stack} == {
        name.rpartition(".")[0] for name in shapes
    }
    return ordered


def group_size(config: ModelConfig, num_ranks: int = 1) -> int:
    """The largest group that fits all matrices of all ranks. Raises `ModelError` where none does."""
    inputs = [config.hidden_size, config.num_heads * config.head_dim / num_ranks]
    inputs.append(config.intermediate_size / num_ranks)
    for size in (32, 16, 8):
        if not any(count % size for count in inputs):
            return size
    raise ModelError(f"int4: expected matrices with a multiple of 8 inputs on each rank, found {inputs}")


def _load_order(config: ModelConfig) -> Iterator[tuple[str, ...]]:
    yield ("model.embed_tokens.weight",)
    yield ("model.embed_positions.weight",)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        yield from _norm(prefix + "input_layernorm")
        yield from _linear(prefix + "self_attn.", "q_proj", "k_proj", "v_proj")
        yield (prefix + "self_attn.q_norm.weight",)
        yield (prefix + "self_attn.k_norm.weight",)
        yield from _linear(prefix + "self_attn.", "o_proj")
        yield from _norm(prefix + "post_attention_layernorm")
        yield from _linear(prefix + "mlp.", "gate_proj", "up_proj")
        yield from _linear(prefix + "mlp.", "down_proj")
    yield from _norm("model.norm")
    yield ("lm_head.weight",)


def _norm(name: str) -> Iterator[tuple[str, ...]]:
    yield (name + ".weight",)
    yield (name + ".bias",)


def _linear(prefix: str, *names: str) -> Iterator[tuple[str, ...]]:
    yield tuple(f"{prefix}{name}.weight" for name in names)
    yield tuple(f"{prefix}{name}.bias" for name in names)


def _stored(
    name: str, shape: tuple[int, ...], config: ModelConfig, narrow: Narrowing | None, group: int, whole: bool
) -> list[Slot]:
    if narrow is None:
        return [Slot(name, FLOATS[config.dtype], shape)]
    rows, columns = shape
    base = name.removesuffix(".weight")
    if narrow == "int4":
        groups = columns // group
        return [
            Slot(base + ".weight_packed", "I32", (rows, columns // 8)),
            Slot(base + ".weight_scale", FLOATS[config.dtype], (rows, groups)),
        ]
    kind = "I8" if narrow == "int8" else "F8_E4M3"
    scale = [] if whole else [Slot(base + ".weight_scale", "F32", (rows, 1))]
    return [Slot(name, kind, shape), *scale]
