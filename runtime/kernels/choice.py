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

ROW_BUCKETS = (1, 8, 16, 32, 64)
"""Numbers of rows that have a choice of their own; fewer rows take the next one's."""


PARTS = 4 << 20
"""fp32 values of unfinished sums, in all."""
TILES = 1 << 14
"""Tiles of outputs that may be unfinished at once."""


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

    def fits(self, task: Task) -> bool:
        """Whether the kernel can run the task's largest number of rows, within the workspace of split products."""
        if self.kind == "gemv":
            return task.num_rows == 1
        if self.kind == "resident":
            return task.bucket <= self.rows
        tiles = -(-task.bucket // self.rows) * -(-task.num_outputs // max(1, self.block_n))
        elements = tiles * self.rows * self.block_n * (2 if task.gated else 1)
        return self.splits == 1 or (tiles <= TILES and elements * self.splits <= PARTS)


LIBRARY = Choice("library")
WIDE = Choice("product", block_n=128, block_k=64, rows=128, warps=8, stages=3)


def default_choice(task: Task) -> Choice:
    if task.num_rows == 1:
        return _gemv(task)
    if task.num_rows <= MAX_SKINNY_ROWS:
        return _resident(task) if _rests(task) else _skinny(task)
    return WIDE if task.weight_bits == 8 and task.num_rows < WIDEN_FROM_ROWS else LIBRARY


def fixed_choice(task: Task) -> Choice:
    """The same for every number of rows, so that a row's result does not depend on it."""
    if task.weight_bits == 32:
        return Choice("product", block_n=32, block_k=32, rows=16, warps=4, stages=2)
    return Choice("product", block_n=32 if task.gated else 64, block_k=64, rows=64, warps=4, stages=4)


def candidates(task: Task) -> list[Choice]:
    """The default first, then its neighbours, then the library: what a tuner measures."""
    default = default_choice(task)
    found = [default]
    if default.kind == "gemv":
        found += [_gemv_of(task, rows, columns) for rows in (2, 4) for columns in (512, 1024, 2048)]
    elif task.num_rows <= MAX_SKINNY_ROWS:
        found += [_skinny(task, splits=splits) for splits in (1, 2, 4)]
        found += [_resident(task)] if task.bucket <= 16 and task.weight_bits == 16 else []
    return [choice for choice in dict.fromkeys([*found, LIBRARY]) if choice.fits(task)]


def _gemv(task: Task) -> Choice:
    if task.weight_bits == 8:
        return _gemv_of(task, 4, 4096 if task.normed else 2048)
    if task.num_inputs <= 1024:
        return _gemv_of(task, 2 if task.gated else 4, 512)
    if task.gated:
        return _gemv_of(task, 1, 2048)
    return _gemv_of(task, 2 if task.num_outputs > 4096 else 4, 2048)


def _gemv_of(task: Task, rows: int, columns: int) -> Choice:
    """As many warps as give each thread 16 bytes of every row."""
    columns = min(columns, _power_of_two(task.num_inputs))
    bits = min(task.weight_bits, 16)
    return Choice(
        "gemv", block_n=rows, block_k=columns, warps=max(1, columns * bits // 4096), fuses_norm=True
    )


def _rests(task: Task) -> bool:
    """Whether the weight is small enough, and the rows few enough, for `resident`."""
    elements = task.num_outputs * task.num_inputs * (2 if task.gated else 1)
    return task.weight_bits == 16 and elements << (task.bucket > 8) <= 16 << 20 and task.bucket <= 16


def _resident(task: Task) -> Choice:
    columns = min(2048 if task.added else 512, _power_of_two(task.num_inputs))
    slices = max(1, min(8, columns // 128))
    return Choice(
        "resident", block_n=8 if task.gated else 16, block_k=columns, splits=slices, warps=slices,
        rows=task.bucket, fuses_norm=True,
    )  # fmt: skip


def _skinny(task: Task, splits: int = 0) -> Choice:
    blocks = -(-task.num_outputs // 64)
    if not splits:
        splits = 1 if task.gated or blocks >= 128 else 2 if blocks >= 32 else 4
    return Choice(
        "product", block_n=32 if task.gated else 64, block_k=128, splits=splits, warps=4, stages=4,
        prefetch=512, rows=max(16, task.bucket),
    )  # fmt: skip


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
