"""Weights on their way to a device: every byte arrives, no block is written while it is copied, memory is bounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from jitney.runtime.cuda.streamed import PlacedWeights, StreamedWeights
from jitney.runtime.errors import ModelError
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.model.layers import load_layers
from jitney.runtime.weights.layout import expected_shapes
from jitney.runtime.weights.mapped_tensors import MappedTensors
from jitney.runtime.weights.quantized_weights import QuantizedWeights
from jitney.runtime.weights.safetensors_weights import SafetensorsWeights
from jitney.runtime.weights.split_rows import SplitRows

MODEL = ModelConfig(
    vocab_size=120, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
    max_position=64,
)  # fmt: skip


class LateCopies:
    """A device that copies as late as it may: a block that is written before its copy is done shows in the tensor."""

    def __init__(self) -> None:
        self.num_blocks = self.num_copies = self.most_waiting = 0
        self._waiting: list[tuple[int, Tensor, Tensor]] = []

    def block(self, num_bytes: int) -> Tensor:
        self.num_blocks += 1
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def empty(self, num_bytes: int) -> Tensor:
        return torch.full((num_bytes,), 255, dtype=torch.uint8)

    def start(self, target: Tensor, source: Tensor) -> object:
        self.num_copies += 1
        self._waiting.append((self.num_copies, target, source))
        self.most_waiting = max(self.most_waiting, len(self._waiting))
        return self.num_copies

    def finish(self, copy: object) -> None:
        assert isinstance(copy, int)
        while self._waiting and self._waiting[0][0] <= copy:
            _, target, source = self._waiting.pop(0)
            target.copy_(source)

    def join(self, tensor: Tensor) -> None:
        self.finish(self.num_copies)


def tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(MODEL)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A model in two files, its tensors in no order that a reader would choose."""
    found = tensors()
    names = sorted(found, key=lambda name: name[::-1])
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: found[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path, found


@pytest.mark.parametrize(("num_blocks", "block_bytes"), [(1, 64), (2, 100), (3, 1000), (8, 1 << 20)])
def test_every_byte_arrives_through_blocks_of_any_size(
    shards: tuple[Path, dict[str, Tensor]], num_blocks: int, block_bytes: int
) -> None:
    directory, expected = shards
    copies = LateCopies()
    weights = SafetensorsWeights(directory)
    with StreamedWeights(weights, copies, num_blocks=num_blocks, block_bytes=block_bytes) as streamed:
        found = {name: streamed.get(name).clone() for name in streamed.names()}
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert copies.num_blocks == num_blocks
    assert copies.most_waiting <= num_blocks


def test_layers_are_those_of_a_plain_reader(shards: tuple[Path, dict[str, Tensor]]) -> None:
    directory, _ = shards

    def pack(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        return {"weight": weight}

    plain = load_layers(MODEL, SafetensorsWeights(directory), pack, torch.float32, 64)
    with StreamedWeights(
        SafetensorsWeights(directory), LateCopies(), num_blocks=3, block_bytes=700
    ) as weights:
        streamed = load_layers(MODEL, weights, pack, torch.float32, 64)
    assert streamed.head["weight"].equal(plain.head["weight"])
    for mine, twin in zip(streamed.layers, plain.layers, strict=True):
        assert all(mine[part][name].equal(twin[part][name]) for part in twin for name in twin[part])


def test_a_reader_that_asks_for_a_few_leaves_cleanly(shards: tuple[Path, dict[str, Tensor]]) -> None:
    directory, expected = shards
    copies = LateCopies()
    with StreamedWeights(SafetensorsWeights(directory), copies, num_blocks=2, block_bytes=500) as streamed:
        last = streamed.get("lm_head.weight").clone()
    assert last.equal(expected["lm_head.weight"])
    assert not copies._waiting


def test_a_file_that_ends_early_is_named(shards: tuple[Path, dict[str, Tensor]]) -> None:
    directory, _ = shards
    weights = SafetensorsWeights(directory)
    path = directory / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with (
        StreamedWeights(weights, LateCopies(), num_blocks=2, block_bytes=4096) as streamed,
        pytest.raises(ModelError, match=r"b\.safetensors: ends \d+ bytes before"),
    ):
        for name in streamed.names():
            streamed.get(name)


def test_parts_of_fused_matrices_and_narrowed_ones(tmp_path: Path) -> None:
    found = tensors()
    layer = "model.layers.0."
    parts = [found[f"{layer}self_attn.{name}_proj.weight"] for name in "qkv"]
    narrow = torch.randint(-127, 127, (32, 48), dtype=torch.int8)
    stored = {
        f"{layer}self_attn.qkv_proj.weight": torch.cat(parts),
        f"{layer}mlp.down_proj.weight": narrow,
        f"{layer}mlp.down_proj.weight_scale": torch.full((32, 1), 0.5),
    }
    save_file(stored, tmp_path / "rank0.safetensors")
    weights = QuantizedWeights(SplitRows(MappedTensors(tmp_path / "rank0.safetensors"), MODEL))
    assert isinstance(weights, PlacedWeights)
    assert weights.place(f"{layer}mlp.down_proj.weight") is None
    with StreamedWeights(weights, LateCopies(), num_blocks=2, block_bytes=300) as streamed:
        for name, expected in zip("qkv", parts, strict=True):
            assert streamed.get(f"{layer}self_attn.{name}_proj.weight").equal(expected)
        assert streamed.get(f"{layer}mlp.down_proj.weight").equal(narrow.float() * 0.5)
