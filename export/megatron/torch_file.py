"""A file that `torch.save` wrote, read as data: a zip archive with one pickle and the bytes of each storage. Tensors
come as `StoredTensor`s; of the rest only plain values and inert records are kept."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ...runtime.errors import ModelError
from .pickled import PickleReader
from .records import Name, Record, Refused, shown
from .stored_tensor import ELEMENT_BYTES, StoredTensor, is_counts
from .torch_names import PARAMETERS, STORAGE_TYPES, builder

MAX_PICKLE_BYTES = 256 * 2**20
MAX_MEMBERS = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def read_torch_file(path: Path, start: int = 0, length: int | None = None) -> Any:
    """What was saved in the bytes [start, start + length) of a file, whole where `length` is None.

    Raises `ModelError` naming the file and what is wrong in it.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            end = size if length is None else start + length
            if not 0 <= start <= end <= size:
                raise Refused(f"the bytes [{start}, {end}) of a file of {size}")
            return _Archive(path, _Window(file, start, end)).read()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    # NotImplementedError is zipfile's word for a compression that it lacks.
    except (Refused, zipfile.BadZipFile, NotImplementedError, struct.error, zlib.error) as error:
        raise ModelError(f"{path}: not a checkpoint that can be read safely: {error}") from error
    except (ValueError, OverflowError, EOFError, RuntimeError) as error:  # the archive's directory is damaged
        raise ModelError(f"{path}: not a well-formed zip archive: {error}") from error


class _Window:
    """A part of an open file, as a file; never more is asked of it than it has."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self.start, self.size, self._at = file, start, end - start, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = {0: 0, 1: self._at, 2: self.size}[whence] + offset
        if at < 0:
            raise Refused(f"an offset of {at} bytes")
        self._at = at
        return at

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self._at)
        self._file.seek(self.start + self._at)
        data = self._file.read(left if count < 0 else min(count, left))
        self._at += len(data)
        return data


class _Storage(NamedTuple):
    start: int
    dtype: str
    num_bytes: int


class _Archive:
    def __init__(self, path: Path, window: _Window) -> None:
        self._path, self._window = path, window
        head = window.read(4)
        if head[:2] == b"\x80\x02" or head[:1] == b"\x80":
            raise Refused("it is in torch's format from before 1.6; load and save it once with a newer torch")
        if head != b"PK\x03\x04":
            raise Refused(f"expected a zip archive as torch.save writes it, found {head!r}")
        archive = zipfile.ZipFile(window)
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise Refused(f"{len(members)} members, where at most {MAX_MEMBERS} are read")
        self._members = {member.filename: member for member in members}
        if len(self._members) != len(members):
            raise Refused("a member's name stands twice")
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused(f"expected one data.pkl, found {len(pickles)}")
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self._members.get(self._prefix + "byteorder")
        if order is not None and self._bytes(order, 16) != b"little":
            raise Refused("its byte order is not little-endian")

    def read(self) -> Any:
        data = self._bytes(self._members[self._prefix + "data.pkl"], MAX_PICKLE_BYTES)
        return PickleReader(data, self._builder, self._storage).read()

    def _builder(self, path: str) -> Any:
        if path == _WITH_ATTRIBUTES:
            return self._rebuild_with_attributes
        return self._rebuild if path in _REBUILDS else builder(path)

    def _bytes(self, member: zipfile.ZipInfo, most: int) -> bytes:
        start, size = self._span(member)
        if size > most:
            raise Refused(f"{member.filename}: {size} bytes, where at most {most} are read")
        self._window.seek(start)
        return self._window.read(size)

    def _span(self, member: zipfile.ZipInfo) -> tuple[int, int]:
        """Where a member's bytes lie; torch never compresses them."""
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise Refused(f"{member.filename}: it is compressed, which torch never does")
        self._window.seek(member.header_offset)
        header = self._window.read(_LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size:
            raise Refused(f"{member.filename}: its header passes the end of the file")
        magic, name_len, extra_len = _LOCAL_HEADER.unpack(header)
        start = member.header_offset + _LOCAL_HEADER.size + name_len + extra_len
        if magic != b"PK\x03\x04" or start + member.file_size > self._window.size:
            raise Refused(f"{member.filename}: its bytes are not in the file")
        return start, member.file_size

    def _storage(self, identity: Any) -> _Storage:
        """A persistent id: ("storage", type, key, device, number of elements)."""
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise Refused("a persistent id that is no storage")
        _, kind, key, _, _ = identity
        dtype = STORAGE_TYPES.get(kind.path) if isinstance(kind, Name) else None
        member = self._members.get(f"{self._prefix}data/{key}") if isinstance(key, str) else None
        if dtype is None or member is None:
            raise Refused(f"a storage that is not in the file: {shown(key)}")
        start, size = self._span(member)
        return _Storage(self._window.start + start, dtype, size)

    def _rebuild(self, args: tuple[Any, ...]) -> StoredTensor:
        """`_rebuild_tensor_v2` and its siblings: (storage, offset, shape, strides, …, [dtype last, in v3])."""
        if len(args) < 4 or not isinstance(args[0], _Storage):
            raise Refused("a tensor without its storage")
        storage, offset, shape, strides = args[:4]
        last = args[-1]
        dtype = (
            last.path.removeprefix("torch.") if len(args) > 6 and isinstance(last, Name) else storage.dtype
        )
        if dtype not in ELEMENT_BYTES:
            raise Refused(f"a tensor of {dtype[:40]}, where one of {', '.join(ELEMENT_BYTES)} is expected")
        if not (
            is_counts(shape) and is_counts(strides) and is_counts((offset,)) and len(shape) == len(strides)
        ):
            raise Refused("a tensor whose shape, strides and offset are not counts")
        last_element = offset + sum(
            (size - 1) * step for size, step in zip(shape, strides, strict=True) if size
        )
        unit = ELEMENT_BYTES[dtype]
        if math.prod(shape) and (last_element + 1) * unit > storage.num_bytes:
            raise Refused(f"a tensor of shape {shape} passes the end of its {storage.num_bytes} bytes")
        if math.prod(shape) * unit > storage.num_bytes:
            raise Refused(f"a tensor of shape {shape} repeats its {storage.num_bytes} bytes")
        return StoredTensor(self._path, storage.start + offset * unit, dtype, tuple(shape), tuple(strides))

    def _rebuild_with_attributes(self, args: tuple[Any, ...]) -> Any:
        """A tensor that had attributes in Python: (how it is rebuilt, its class, the arguments, the attributes)."""
        if len(args) != 4 or not isinstance(args[0], Name) or not isinstance(args[2], tuple):
            raise Refused("a tensor with attributes that is no tensor")
        if args[0].path in _REBUILDS:
            return self._rebuild(args[2])
        if args[0].path in PARAMETERS and args[2] and isinstance(args[2][0], StoredTensor):
            return args[2][0]
        raise Refused(f"a tensor that is made by {args[0].path[:80]}")


_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_REBUILDS = {f"torch._utils._rebuild_tensor{suffix}" for suffix in ("", "_v2", "_v3")}


def fields_of(value: Any) -> dict[str, Any]:
    """The attributes of an inert record, the entries of a dict; nothing of anything else."""
    if isinstance(value, Record):
        return value.fields()
    return value if isinstance(value, dict) else {}
