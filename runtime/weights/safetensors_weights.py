"""Tensors of one or many safetensors files. Headers are read and checked at once, tensors on demand."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from ..errors import ModelError
from .json_file import decoded, read_json

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
    """Where a tensor's bytes lie, contiguous: [start, start + num_bytes) of a file. `dtype` as torch names it."""

    path: Path
    start: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]


class Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=8)]
    data_offsets: tuple[_Size, _Size]


class SafetensorsWeights:
    """`Weights` of a directory: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Raises `ModelError` naming the file and the tensor.
    """

    def __init__(self, directory: Path, kinds: Mapping[str, int] = FLOAT_BYTES) -> None:
        """`kinds`: the types that are read, and their sizes."""
        self.source = str(directory)
        self._files: dict[str, Path] = {}
        self._entries: dict[str, Entry] = {}
        self._starts: dict[Path, int] = {}
        for path in _files(directory):
            entries, self._starts[path] = read_header(path, kinds)
            for name, entry in entries.items():
                if name in self._files:
                    raise ModelError(f"{path}: the tensor {name} is also in {self._files[name].name}")
                self._files[name], self._entries[name] = path, entry

    def names(self) -> Sequence[str]:
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """As safetensors spells it: F32, F16, BF16, …"""
        return self._entry(name).dtype

    def get(self, name: str) -> torch.Tensor:
        from safetensors import SafetensorError, safe_open

        self._entry(name)
        path = self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: tensor {name}: {error}") from error
        return tensor

    def place(self, name: str) -> Place:
        return placed(self._files[name], self._starts[self._files[name]], self._entry(name))

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelError(f"{self.source}: the tensor {name} is missing") from None


def placed(path: Path, data_start: int, entry: Entry) -> Place:
    start, end = entry.data_offsets
    return Place(path, data_start + start, end - start, TORCH_NAMES[entry.dtype], entry.shape)


def _files(directory: Path) -> list[Path]:
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


def read_header(path: Path, kinds: Mapping[str, int]) -> tuple[dict[str, Entry], int]:
    """The tensors of a file, and where their data begins. Raises `ModelError` naming the file."""
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
    entries = {name: decoded(path, entry, Entry) for name, entry in raw.items()}
    for name, entry in entries.items():
        _check(path, name, entry, size - 8 - length, kinds)
    return entries, 8 + length


def _check(path: Path, name: str, entry: Entry, data_bytes: int, kinds: Mapping[str, int]) -> None:
    if entry.dtype not in kinds:
        served = ", ".join(kinds)
        raise ModelError(f"{path}: tensor {name}: expected one of {served}, found {entry.dtype[:40]!r}")
    nbytes = kinds[entry.dtype]
    for size in entry.shape:
        nbytes *= size
    start, end = entry.data_offsets
    if end - start != nbytes or end > data_bytes:
        raise ModelError(
            f"{path}: tensor {name}: the shape {entry.shape} takes {nbytes} bytes,"
            f" found [{start}, {end}) of {data_bytes}"
        )
