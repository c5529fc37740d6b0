"""SHA-256 of files in blocks: written down when an engine is made, checked on threads while it loads."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..errors import ModelError
from ..process import num_cores

BLOCK_BYTES = 64 * 2**20


def num_blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES)


def block_digest(path: Path, index: int) -> str:
    """Of one block, in hexadecimal. The interpreter is free while it runs: the block is mapped, not read."""
    start = index * BLOCK_BYTES
    with path.open("rb") as file:
        size = min(BLOCK_BYTES, file.seek(0, 2) - start)
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start) as block:
            return hashlib.sha256(block).hexdigest()


class BlockCheck:
    """Files being compared with the digests of their blocks. It begins at once, on threads of its own, which end when
    the last block is done; `finish` waits for them and may be called from any thread."""

    def __init__(self, files: Iterable[tuple[Path, tuple[str, ...]]]) -> None:
        pool = ThreadPoolExecutor(num_cores(), "jitney-verify")
        self._blocks: list[tuple[Path, int, str, Future[str]]] = [
            (path, index, expected, pool.submit(block_digest, path, index))
            for path, digests in files
            for index, expected in enumerate(digests)
        ]
        pool.shutdown(wait=False)

    def finish(self) -> None:
        """Raises `ModelError` naming the first file that differs, and where in it."""
        for path, index, expected, found in self._blocks:
            try:
                digest = found.result()
            except (OSError, ValueError) as error:
                raise ModelError(f"{path}: block {index} cannot be read: {error}") from error
            if digest != expected:
                start = index * BLOCK_BYTES
                raise ModelError(
                    f"{path}: damaged: block {index}, bytes {start:,} to {start + BLOCK_BYTES - 1:,}:"
                    f" expected SHA-256 {expected}, found {digest}"
                )
