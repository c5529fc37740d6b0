"""JSON from files that are not trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import ModelError

MAX_JSON_BYTES = 256 * 2**20
T = TypeVar("T")


def decoded(path: Path, raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Raises `ModelError` naming the file."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: not the JSON that was expected: {error}") from error


def read_json(path: Path, kind: type[T]) -> T:
    """Raises `ModelError` naming the file."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(f"{path}: expected at most {MAX_JSON_BYTES} bytes, found {size}")
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    return decoded(path, raw, kind)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file. Raises `ModelError` naming it."""
    return read_json(path, dict[str, Any])
