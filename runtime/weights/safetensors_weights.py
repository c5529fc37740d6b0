"""Tensors of one or many safetensors files. Headers are read and checked at once, tensors on demand."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from ..errors import ModelError
from .json_file import decoded, read_json
from .source import Listed

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000
FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
STORED_BYTES = FLOAT_BYTES | {"I8": 1, "F8_E4M3": 1, "I32": 4, "I64": 8}
"""What quantised checkpoints hold beside floats."""
_Size = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]


TORCH_NAMES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "I32": "int32",
    "I64": "int64",
}


class Place(msgspec.Struct, frozen=True):
    """Where a tensor's bytes lie, contiguous: [start, start + num_bytes) of a file. `kind` as safetensors spells it:
    F32, F16, BF16, …"""

    path: Path
    start: int
    num_bytes: int
    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """As torch names it."""
        return TORCH_NAMES[self.kind]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=8)]
    data_offsets: tuple[_Size, _Size]


class SafetensorsWeights(Listed[Place]):
    """`Weights` of a file, or of a directory: `model.safetensors`, or the shards that `model.safetensors.index.json`
    lists.

    Raises `ModelError` naming the file and the tensor.
    """

    def __init__(self, source: Path, kinds: Mapping[str, int] = FLOAT_BYTES) -> None:
        """`kinds`: the types that are read, and their sizes."""
        places: dict[str, Place] = {}
        for path in _files(source):
            for name, place in read_header(path, kinds).items():
                if name in places:
                    raise ModelError(f"{path}: the tensor {name} is also in {places[name].path.name}")
                places[name] = place
        super().__init__(str(source), places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.known(name).shape

    def dtype(self, name: str) -> str:
        """As safetensors spells it."""
        return self.known(name).kind

    def get(self, name: str) -> torch.Tensor:
        from safetensors import SafetensorError, safe_open

        path = self.known(name).path
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: tensor {name}: {error}") from error
        return tensor

    def place(self, name: str) -> Place:
        return self.known(name)


def _files(source: Path) -> list[Path]:
    return _shards(source) if source.is_dir() else [source]


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelError(f"{directory}: expected model.safetensors or {index.name}, found neither")
    names = list(dict.fromkeys(read_json(index, _Index).weight_map.values()))
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise ModelError(f"{index}: the shard {name!r} is not a file beside it")
    return [directory / name for name in names]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_header(path: Path, kinds: Mapping[str, int]) -> dict[str, Place]:
    """The tensors of a file. Raises `ModelError` naming it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{path}: expected a header of 2 to {size - 8} bytes, found {length}")
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    raw = decoded(path, text, dict[str, msgspec.Raw])
    raw.pop("__metadata__", None)
    entries = {name: decoded(path, entry, _Entry) for name, entry in raw.items()}
    return {name: _place(path, name, entry, 8 + length, size, kinds) for name, entry in entries.items()}


def _place(
    path: Path, name: str, entry: _Entry, data_start: int, file_size: int, kinds: Mapping[str, int]
) -> Place:
    if entry.dtype not in kinds:
        served = ", ".join(kinds)
        raise ModelError(f"{path}: tensor {name}: expected one of {served}, found {entry.dtype[:40]!r}")
    num_bytes = kinds[entry.dtype] * math.prod(entry.shape)
    start, end = entry.data_offsets
    if end - start != num_bytes or data_start + end > file_size:
        raise ModelError(
            f"{path}: tensor {name}: the shape {entry.shape} takes {num_bytes} bytes,"
            f" found [{start}, {end}) of {file_size - data_start}"
        )
    return Place(path, data_start + start, num_bytes, entry.dtype, entry.shape)
