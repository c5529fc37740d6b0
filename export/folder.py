"""A directory that appears whole or not at all: filled under a temporary name beside its target, forced to the disk,
renamed. Blocks of its files are hashed on threads while more is written."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ..runtime.errors import ModelError
from ..runtime.process import num_cores
from ..runtime.weights.blocks import BLOCK_BYTES, block_digest
from ..runtime.weights.manifest import StoredFile

MARKS = ("engine.json", "config.json")
"""Of which a directory must hold one to be replaced."""
NAMES = re.compile(
    r"(engine|config|generation_config|tokenizer|tokenizer_config|model\.safetensors\.index)\.json"
    r"|(model(-\d+-of-\d+)?|rank\d+)\.safetensors|kernels-.*\.bin|chat_template\.jinja"
)
"""Of the files that exports write: a directory that holds anything else is somebody's, and is not replaced."""


@contextmanager
def whole_directory(target: Path, *, source: str = "", replace: bool = False) -> Iterator[Folder]:
    """Gives a folder to fill; the target exists when the block has ended without an error, not before. A link stays
    one: what it leads to is replaced. `source` is what is read meanwhile.

    Killed at any point it leaves the target as it was, and at most a directory `.NAME.partial-…` beside it, without
    a manifest. Raises `ModelError` where the target is taken or cannot be written.
    """
    target = target.resolve() if target.is_symlink() else target
    _check_free(target, replace, Path(source))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            with ThreadPoolExecutor(num_cores(), "jitney-hash") as pool:
                folder = Folder(partial, pool)
                yield folder
                folder.close()
            partial.chmod(0o755)
            _sync(partial)
            _swap(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise ModelError(f"{target}: cannot be written: {error}") from error


class Folder:
    """Files of a directory in the making, each written once, from its beginning to its end."""

    def __init__(self, path: Path, pool: ThreadPoolExecutor) -> None:
        self.path = path
        self._pool = pool
        self._files: list[File] = []

    def create(self, name: str) -> File:
        file = File(self.path / name, self._pool)
        self._files.append(file)
        return file

    def write(self, name: str, content: bytes) -> None:
        file = self.create(name)
        file.write(content)
        file.close()

    def write_json(self, name: str, content: object) -> None:
        self.write(name, msgspec.json.format(msgspec.json.encode(content), indent=2))

    def stored(self) -> tuple[StoredFile, ...]:
        """All files so far, closed and hashed, by name."""
        self.close()
        return tuple(file.stored() for file in sorted(self._files, key=lambda file: file.path.name))

    def close(self) -> None:
        for file in self._files:
            file.close()


class File:
    """One file, hashed block by block behind the writer."""

    def __init__(self, path: Path, pool: ThreadPoolExecutor) -> None:
        self.path = path
        self._pool = pool
        self._size = 0
        self._digests: list[Future[str]] = []
        self._handle: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, data: bytes | memoryview) -> None:
        assert self._handle is not None
        rest = memoryview(data).cast("B")
        while rest:
            count = os.write(self._handle, rest[:BLOCK_BYTES])
            rest, self._size = rest[count:], self._size + count
            while (len(self._digests) + 1) * BLOCK_BYTES <= self._size:
                self._hash()

    def close(self) -> None:
        """Force it to the disk."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            if len(self._digests) * BLOCK_BYTES < self._size:
                self._hash()

    def stored(self) -> StoredFile:
        return StoredFile(self.path.name, self._size, tuple(digest.result() for digest in self._digests))

    def _hash(self) -> None:
        self._digests.append(self._pool.submit(block_digest, self.path, len(self._digests)))


def _check_free(target: Path, replace: bool, source: Path) -> None:
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not replace:
        raise ModelError(f"{target}: exists already; name another directory, or replace it with --force")
    if source.exists() and source.resolve().is_relative_to(target.resolve()):
        raise ModelError(f"{target}: holds what is exported, {source}; name another directory")
    if not target.is_dir() or not any((target / mark).is_file() for mark in MARKS):
        raise ModelError(f"{target}: not a directory that an export made; remove it by hand")
    for entry in sorted(target.iterdir()):
        if not NAMES.fullmatch(entry.name) or entry.is_dir():
            raise ModelError(f"{target}: holds {entry.name}, which no export made; remove it by hand")


def _swap(partial: Path, target: Path) -> None:
    old = partial.with_name(partial.name.replace(".partial-", ".replaced-"))
    replaced = target.is_dir()
    if replaced:
        os.rename(target, old)
    os.rename(partial, target)
    _sync(target.parent)
    if replaced:
        shutil.rmtree(old, ignore_errors=True)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
