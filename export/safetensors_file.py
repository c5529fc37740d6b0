"""A safetensors file, written tensor by tensor in the order of its header."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from .folder import Folder
from .stacks import Slot

ALIGNMENT = 64


class SafetensorsFile:
    """`slots` are its tensors in order; `add` takes their rows as they come, in pieces of any size."""

    def __init__(self, folder: Folder, name: str, slots: Sequence[Slot]) -> None:
        self._file = folder.create(name)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for slot in slots:
            start, end = end, end + slot.num_bytes
            header[slot.name] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": (start, end)}
        text = msgspec.json.encode(header)
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._left = end

    def add(self, tensor: Tensor) -> None:
        content = tensor.detach().contiguous().view(torch.uint8).numpy()
        self._file.write(content.reshape(-1).data)
        self._left -= tensor.nbytes

    def close(self) -> None:
        assert self._left == 0
        self._file.close()
