"""SHA-256 of files in blocks: written down when an engine is made, checked on threads while it loads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..errors import ModelError
from ..process import num_cores

BLOCK_BYTES = 64 * 2**20
PIECE_BYTES = 16 * 2**20
"""Large, so that the interpreter is asked for seldom."""


def num_blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES)


def block_digest(path: Path, index: int) -> str:
    """Of one block, in hexadecimal. The interpreter is free while it reads and hashes; a mapping would end the
    process if somebody cut the file short meanwhile."""
    sha, piece = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        for start in range(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES, PIECE_BYTES):
            file.seek(start)
            count = file.readinto(piece) or 0
            sha.update(piece[:count])
            if count < PIECE_BYTES:
                break
    return sha.hexdigest()


class BlockCheck:
    """Files being compared with the digests of their blocks. It begins at once, on threads of its own, one less than
    there are cores, so that the start goes on beside them; they end when the last block is done. `finish` waits for
    them and may be called from any thread."""

    def __init__(self, files: Iterable[tuple[Path, tuple[str, ...]]]) -> None:
        pool = ThreadPoolExecutor(max(1, num_cores() - 1), "jitney-verify")
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
