"""A GGUF file's metadata and tensor directory, read from a memory map. The file is not trusted: every count, length
and offset is checked against the bytes that are there. The `gguf` package's own reader is 20 times slower."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_ENTRIES = 1 << 20
MAX_DIMS = 4


class GgufTensor(msgspec.Struct, frozen=True):
    """One tensor: `shape` is outermost first (out x in); its bytes are [start, start + nbytes) of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    nbytes: int


class GgufFile:
    """`metadata` by key, `tensors` by name, and the mapped bytes. Raises `ModelError` naming the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be mapped as a GGUF file: {error}") from error
        try:
            self._read(_Cursor(self.data))
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            raise ModelError(f"{path}: not a well-formed GGUF file: {error}") from error

    def _read(self, cursor: _Cursor) -> None:
        if self.data[:4] != b"GGUF":
            raise ValueError(f"expected the magic b'GGUF', found {self.data[:4]!r}")
        cursor.position = 4
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"expected version 2 or 3, little-endian, found {version}")
        num_tensors, num_keys = cursor.count(24), cursor.count(13)
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = cursor.string()
            if key in self.metadata:
                raise ValueError(f"the key {key!r} stands twice")
            self.metadata[key] = cursor.value(cursor.scalar("I"))
        listed = [_listed(cursor) for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise ValueError(f"general.alignment: expected 1 to 1048576, found {alignment!r}")
        base = -(-cursor.position // alignment) * alignment
        self.tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in listed:
            if name in self.tensors:
                raise ValueError(f"the tensor {name!r} stands twice")
            self.tensors[name] = _placed(name, shape, kind, base + offset, len(self.data))


class _Cursor:
    """Reads forward through the map; raises ValueError or struct.error where the bytes run out."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def count(self, min_bytes_each: int) -> int:
        count: int = self.scalar("Q")
        left = len(self.data) - self.position
        if count > MAX_ENTRIES or count * min_bytes_each > left:
            raise ValueError(f"a count of {count} at byte {self.position - 8}, with {left} bytes left")
        return count

    def string(self) -> str:
        length = self.scalar("Q")
        start, end = self.position, self.position + length
        if end > len(self.data):
            raise ValueError(f"a string of {length} bytes at byte {start} passes the end of the file")
        self.position = end
        return self.data[start:end].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.scalar("I"))
        if kind not in _SCALARS:
            raise ValueError(f"unknown value type {kind} at byte {self.position - 4}")
        return self.scalar(_SCALARS[kind])

    def array(self, kind: int) -> list[Any]:
        if kind == _STRING:
            return [self.string() for _ in range(self.count(8))]
        if kind not in _SCALARS:
            raise ValueError(f"unknown or nested array type {kind} at byte {self.position - 4}")
        size = struct.calcsize("<" + _SCALARS[kind])
        count = self.count(size)
        values = struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, self.position)
        self.position += count * size
        return list(values)


def _listed(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    num_dims = cursor.scalar("I")
    if not 1 <= num_dims <= MAX_DIMS:
        raise ValueError(f"tensor {name!r}: expected 1 to {MAX_DIMS} dimensions, found {num_dims}")
    shape = tuple(cursor.scalar("Q") for _ in range(num_dims))
    return name, shape[::-1], cursor.scalar("I"), cursor.scalar("Q")


def _placed(name: str, shape: tuple[int, ...], kind: int, start: int, file_size: int) -> GgufTensor:
    try:
        known = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        raise ValueError(f"tensor {name!r}: unknown tensor type {kind}") from None
    if any(size < 1 for size in shape) or shape[-1] % block:
        raise ValueError(f"tensor {name!r}: the shape {shape} does not fit {known.name} blocks of {block}")
    nbytes = shape[-1] // block * block_bytes
    for size in shape[:-1]:
        nbytes *= size
    if start + nbytes > file_size:
        raise ValueError(f"tensor {name!r}: ends at byte {start + nbytes} of a file of {file_size}")
    return GgufTensor(name, shape, known, start, nbytes)
