"""Which kernel computes a linear layer, by what it does, its shape and its number of rows.

`default_choice` is what was measured on an H100 (benchmarks/kernels/linear.py), as rules of size that hold for other
shapes too. A tuner's measurements (tuner.py) go before it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

MAX_SKINNY_ROWS = 64
"""Up to here the weight's bytes decide the time, and the products of this folder compete with the library's."""

WIDEN_FROM_ROWS = 512
"""From here on an 8-bit weight is widened first and multiplied by the library."""

ROW_BUCKETS = (1, 16, 32, 64)
"""Numbers of rows that have a choice of their own; fewer rows take the next one's."""


class Task(NamedTuple):
    """What a product does besides multiplying [M, K] by [N, K]; where gated, N counts the outputs of one half."""

    num_outputs: int
    num_inputs: int
    num_rows: int
    weight_bits: int
    normed: bool = False
    gated: bool = False
    added: bool = False

    @property
    def bucket(self) -> int:
        return next((rows for rows in ROW_BUCKETS if self.num_rows <= rows), self.num_rows)

    @property
    def key(self) -> str:
        """One name for all numbers of rows of a bucket."""
        extras = "".join(
            f"-{name}"
            for name, has in (("norm", self.normed), ("gate", self.gated), ("add", self.added))
            if has
        )
        return f"{self.num_outputs}x{self.num_inputs}-w{self.weight_bits}-m{self.bucket}{extras}"


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`library`: torch's product, norm and activation as launches of their own. The others are the files of those
    names, with their blocks, how many splits of K, the warps and pipeline stages of a program, how many columns it asks
    for before its turn, and whether a norm is a part of it or a launch of its own."""

    kind: Literal["gemv", "resident", "product", "library"]
    block_n: int = 0
    block_k: int = 0
    splits: int = 1
    warps: int = 4
    stages: int = 1
    prefetch: int = 0
    rows: int = 16
    fuses_norm: bool = False


LIBRARY = Choice("library")
WIDE = Choice("product", block_n=128, block_k=64, rows=128, warps=8, stages=3)


def default_choice(task: Task) -> Choice:
    if task.num_rows == 1:
        return _gemv(task)
    if task.num_rows <= MAX_SKINNY_ROWS:
        return _skinny(task)
    return WIDE if task.weight_bits == 8 and task.num_rows < WIDEN_FROM_ROWS else LIBRARY


def fixed_choice(task: Task) -> Choice:
    """The same for every number of rows, so that a row's result does not depend on it."""
    if task.weight_bits == 32:
        return Choice("product", block_n=32, block_k=32, rows=16, warps=4, stages=2)
    return Choice("product", block_n=64, block_k=64, rows=64, warps=4, stages=4)


def _gemv(task: Task) -> Choice:
    columns = _power_of_two(task.num_inputs)
    block_k = min(2048, columns)
    block_n = 1 if task.gated else 2
    return Choice("gemv", block_n=block_n, block_k=block_k, warps=max(2, block_k // 256), fuses_norm=True)


def _skinny(task: Task) -> Choice:
    rows = max(16, _power_of_two(task.num_rows))
    small = task.num_outputs * task.num_inputs <= 1 << 23
    block_n = 32 if small else 64
    blocks = -(-task.num_outputs // block_n)
    splits = 1 if task.gated or blocks >= 128 else min(4, -(-192 // blocks), max(1, task.num_inputs // 512))
    return Choice(
        "product", block_n=block_n, block_k=128, splits=splits, warps=4, stages=4, prefetch=512, rows=rows,
        fuses_norm=True,
    )  # fmt: skip


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
