"""What was compiled from C when jitney was installed: where it lies, and what its functions take and give."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

Signatures = Mapping[str, tuple[Any, Sequence[Any]]]
"""By a function's name less its prefix: the type of its result and those of its arguments, as ctypes names them."""


def built(folder: Path, name: str) -> Path | None:
    """The library of that name; None where the install had no compiler for it."""
    paths = [folder / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES]
    return next((path for path in paths if path.exists()), None)


def declared(library: ctypes.CDLL, prefix: str, signatures: Signatures) -> ctypes.CDLL:
    """The same library, its functions declared. Raises `AttributeError` where it lacks one."""
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"{prefix}_{name}")
        function.restype, function.argtypes = result, arguments
    return library
