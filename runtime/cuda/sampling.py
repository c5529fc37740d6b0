"""Provisional: greedy."""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import RowSampling, Seat
from .arena import Arena, Patch
from .sizes import Sizes


class SlotSampler:
    def __init__(self, arena: Arena, vocab: int, sizes: Sizes) -> None:
        self._rows = sizes.max_samples

    def allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        self._flags = torch.zeros(self._rows, dtype=torch.int32, device=device)

    def seat(self, patch: Patch, seat: Seat) -> None: ...

    def is_full(self, sampling: RowSampling) -> bool:
        return False

    def sample(self, logits: Tensor, slots: Tensor, positions: Tensor, *, full: bool) -> tuple[Tensor, Tensor]:
        return logits.argmax(-1).int(), self._flags

    def error(self, flag: int) -> str | None:
        return None
