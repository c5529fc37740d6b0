"""What a step asks of a forward pass, whoever computes it: torch (torch_forward.py) or own kernels (native/)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .slots import Int64s, Slots


class Run(NamedTuple):
    """Tokens of one slot, at positions [start, start + num_tokens)."""

    slot: int
    start: int
    num_tokens: int


class Computed(NamedTuple):
    """For the chosen tokens the normed hidden states [chosen, hidden]; for the first of them, those that are sampled,
    the logits [sampled, vocab], float32; for every token whether its state is finite, which a failed row's is not."""

    hidden: Tensor
    logits: Tensor
    finite: Tensor


class Forward(Protocol):
    """Weights and pages. A row's results are the same to the last bit whatever runs come with it."""

    def compute(self, runs: Sequence[Run], chosen: Sequence[int], num_sampled: int) -> Computed:
        """Each slot in at most one run. `chosen` counts tokens through all runs, in their order."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] as `compute` gave it; gives float32 [rows, vocab]."""
        ...

    def scrub(self, pages: Int64s) -> None:
        """Take NaNs out of pages: a masked position still meets a weight of zero, and 0 x NaN would reach the pages'
        next owner."""
        ...

    def close(self) -> None: ...


def owners_of(runs: Sequence[Run]) -> Int64s:
    """Whose each token is."""
    return np.repeat([run.slot for run in runs], [run.num_tokens for run in runs])


def tokens_of(slots: Slots, runs: Sequence[Run]) -> list[int]:
    return [
        token for slot, start, count in runs for token in slots.occupant(slot).tokens[start : start + count]
    ]


def positions_of(runs: Sequence[Run]) -> Int64s:
    return np.concatenate([np.arange(run.start, run.start + run.num_tokens) for run in runs])


def zero_pages(num_pages: int, page_numbers: int, dtype: torch.dtype) -> Tensor:
    """[num_pages, page_numbers] of memory that the system hands out as it is written; `torch.zeros` would touch all
    of it at the start."""
    count = num_pages * page_numbers * dtype.itemsize
    return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(num_pages, page_numbers)


def scrub_pages(pools: Sequence[Tensor], pages: Int64s) -> None:
    """pools [num_pages, page_numbers], one for each layer."""
    numbers = torch.from_numpy(pages)
    for pool in pools:
        pool[numbers] = pool[numbers].nan_to_num_(0.0, 0.0, 0.0)
