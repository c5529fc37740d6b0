"""Headers that lie, in every way that a seeded mutation finds."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jitney.runtime.errors import ModelError
from jitney.runtime.weights.safetensors_weights import SafetensorsWeights


def written(path: Path, header: Any, data: bytes = b"\0" * 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ({"w": ENTRY | {"shape": [4, 5]}}, "tensor w: the shape"),
        ({"w": ENTRY | {"data_offsets": [64, 128]}}, "tensor w"),
        ({"w": ENTRY | {"data_offsets": [64, 0]}}, "tensor w"),
        ({"w": ENTRY | {"shape": [-4, -4]}}, "JSON"),
        ({"w": ENTRY | {"shape": [2**40, 2**40]}}, "tensor w"),
        ({"w": ENTRY | {"shape": [1] * 100}}, "JSON"),
        ({"w": ENTRY | {"dtype": "I64"}}, "tensor w: expected one of F32"),
        ({"w": ENTRY | {"dtype": 3}}, "JSON"),
        ({"w": {"dtype": "F32"}}, "JSON"),
        ({"w": 3}, "JSON"),
        ([], "JSON"),
        (b'{"w"', "JSON"),
        (b'{"w": \xff}', "JSON"),
        (b"[" * 50_000, "JSON"),
        (b"", "header"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, header: Any, named: str) -> None:
    path = written(tmp_path / "model.safetensors", header)
    with pytest.raises(ModelError, match=f"(?s){path}.*{named}"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"\0" * 7, b"\xff" * 8, struct.pack("<Q", 2**62) + b"{}"])
def test_a_length_that_lies(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match="model.safetensors"):
        SafetensorsWeights(tmp_path)


def read_all(directory: Path) -> None:
    weights = SafetensorsWeights(directory)
    for name in weights.names():
        assert tuple(weights.get(name).shape) == weights.shape(name)


def test_seeded_mutations(tmp_path: Path) -> None:
    """A mutated header is refused by name, or still describes the file; nothing else happens."""
    path = tmp_path / "model.safetensors"
    save_file({f"layer.{n}": torch.ones(3, 4) for n in range(3)}, path)
    good, random_, refused = path.read_bytes(), random.Random(2), 0
    header_end = 8 + struct.unpack("<Q", good[:8])[0]
    for _ in range(500):
        broken = bytearray(good)
        for _ in range(random_.randint(1, 4)):
            broken[random_.randrange(header_end)] = random_.randrange(256)
        cut = random_.randrange(len(good)) if random_.random() < 0.2 else len(good)
        path.write_bytes(broken[:cut])
        try:
            read_all(tmp_path)
        except ModelError as error:
            assert str(tmp_path) in str(error)
            refused += 1
    assert refused > 400


def test_both_files_and_tensors_of_an_index_are_checked(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(ModelError, match="found neither"):
        SafetensorsWeights(tmp_path)
    broken: list[Any] = [{"w": "../a.safetensors"}, {"w": "a.safetensors"}, {"w": 3}, []]
    for weight_map in broken:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ModelError, match="index.json"):
            SafetensorsWeights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}))
    written(tmp_path / "a.safetensors", {"w": ENTRY})
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="tensor w is also in a.safetensors"):
        SafetensorsWeights(tmp_path)
    written(tmp_path / "b.safetensors", {"v": ENTRY})
    assert SafetensorsWeights(tmp_path).names() == ["w", "v"]


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    written(tmp_path / "model.safetensors", {"w": ENTRY})
    with pytest.raises(ModelError, match="the tensor v is missing"):
        SafetensorsWeights(tmp_path).get("v")


def test_a_directory_may_be_named_like_a_file(tmp_path: Path) -> None:
    directory = tmp_path / "model.safetensors"
    directory.mkdir()
    written(directory / "model.safetensors", {"w": ENTRY})
    assert SafetensorsWeights(directory).names() == ["w"]
