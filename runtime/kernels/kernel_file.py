"""What an engine directory knows of one card: its choices of kernels, and the kernels themselves, compiled.

The file's name says what they were made for. Each kernel lies under Triton's own key for it, a digest of its source,
its types and the compiler, so one that no longer fits is not found and is compiled.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec

from ..errors import ModelError
from .choice import Choice
from .tuned import KERNEL_VERSION

PREFIX = "kernels-"
MAX_BYTES = 1 << 28

Key = Annotated[str, msgspec.Meta(pattern="^[A-Z2-7]{52}$")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]{1,150}\.(json|cubin)$")]
Binaries = dict[Key, dict[Name, bytes]]
"""Triton's files of each kernel: what it says of itself, and the card's own code."""


class MadeFor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    card: str
    capability: tuple[int, int]
    triton: str
    torch: str

    @property
    def file_name(self) -> str:
        major, minor = self.capability
        words = f"{self.card}-sm{major}{minor}-triton{self.triton}-torch{self.torch}-v{KERNEL_VERSION}"
        return f"{PREFIX}{re.sub(r'[^a-z0-9.]+', '-', words.lower())[:80]}.bin"


class KernelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`choices` by `Task.key`."""

    made_for: MadeFor
    choices: dict[str, Choice] = {}
    binaries: Binaries = {}

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)


def this_card() -> MadeFor:
    """Of the current device."""
    import torch
    import triton

    return MadeFor(
        torch.cuda.get_device_name(),
        torch.cuda.get_device_capability(),
        triton.__version__,
        str(torch.__version__),
    )


def read_kernels(path: Path) -> KernelFile:
    """Raises `ModelError` naming the file where it does not hold kernels."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path}: expected at most {MAX_BYTES:,} bytes, found {path.stat().st_size:,}")
        return msgspec.msgpack.decode(path.read_bytes(), type=KernelFile)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{path}: not the kernels that were expected: {error}") from error
