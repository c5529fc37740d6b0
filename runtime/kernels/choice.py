"""Which kernel computes a linear layer, by what it does, its shape and its number of rows.

`default_choice` is what was measured on an H100 (benchmarks/kernels/linear.py): rules of size that hold for other
shapes too, and a table of the layers where a rule misses by more than 3 %. What was measured on the card at hand
(tuned.py) goes before both.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

MAX_SKINNY_ROWS = 64
"""Up to here the weight's bytes decide the time, and the products of this folder compete with the library's."""

MAX_GATED_ROWS = 256
"""Up to here a product that activates what it has computed beats the library's and a launch for that; of large weights
up to half, since a tile's rows that nobody needs cost more than the launch."""

MIN_WIDE_ROWS = 1024
"""From here on `wide_gated` beats the library and that launch; with smaller weights from half as many."""

MOST_NARROWED = 4096
"""Columns of a row that programs narrow for themselves."""

ROW_BUCKETS = (1, 8, 16, 32, 64, 128, 256)
"""Numbers of rows that have a choice of their own; fewer rows take the next one's."""

Stored = Literal["bf16", "fp8", "int8"]
"""Types of weights."""

PARTS = 4 << 20
"""fp32 values of unfinished sums, in all."""
TILES = 1 << 14
"""Tiles of outputs that may be unfinished at once."""


class Task(NamedTuple):
    """What a product does besides multiplying [M, K] by [N, K]; where gated, N counts the outputs of one half. With
    weights of eight bits the rows have eight too, and it does nothing else but add; unless it is `weight_only`."""

    num_outputs: int
    num_inputs: int
    num_rows: int
    weight_bits: int
    normed: bool = False
    gated: bool = False
    added: bool = False
    weight_only: bool = False

    @property
    def bits(self) -> int:
        """That are multiplied."""
        return 16 if self.weight_only else self.weight_bits

    @property
    def can_narrow(self) -> bool:
        """Whether a kernel may narrow the row, multiply it, and activate or add."""
        return self.num_rows == 1 and self.bits == 8 and self.num_inputs <= MOST_NARROWED

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
        kind = f"w{self.weight_bits}" + ("a16" if self.weight_only else "")
        return f"{self.num_outputs}x{self.num_inputs}-{kind}-m{self.bucket}{extras}"

    def stored_as(self, kind: Stored) -> Task:
        """The same with another weight; in fp8 norms are not told apart, and activations are launches of their own but
        where the row is narrowed by the product."""
        if kind == "bf16":
            return self
        if kind == "int8":
            return self._replace(weight_bits=8, weight_only=True)
        task = self._replace(weight_bits=8, normed=False)
        outputs = self.num_outputs * (2 if self.gated else 1)
        return task if task.can_narrow else task._replace(num_outputs=outputs, gated=False)


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`library`: torch's product, norm and activation as launches of their own; where torch has no such product, what
    `fixed_choice` says. The others are the files of those names, with their blocks, how many splits of K, the warps and
    pipeline stages of a program, how many columns it asks for before its turn, and whether a norm is a part of it or a
    launch of its own; of `narrowing` an RMS norm always is."""

    kind: Literal["gemv", "narrowing", "resident", "product", "wide_gated", "library"]
    block_n: int = 0
    block_k: int = 0
    splits: int = 1
    warps: int = 4
    stages: int = 1
    prefetch: int = 0
    rows: int = 16
    fuses_norm: bool = False

    def fits(self, task: Task) -> bool:
        """Whether the kernel can run the task's largest number of rows, within the workspace of split products; and
        by tensor descriptors, whose rows are multiples of 16 bytes."""
        if self.kind == "gemv":
            return task.num_rows == 1
        if self.kind == "narrowing":
            return task.can_narrow
        if self.kind == "resident":
            return task.bucket <= self.rows and task.weight_bits > 8
        if self.kind == "wide_gated":
            is_even = task.num_inputs % 8 == task.num_outputs % 8 == 0
            return task.gated and task.weight_bits == 16 and is_even
        tiles = -(-task.bucket // self.rows) * -(-task.num_outputs // max(1, self.block_n))
        elements = tiles * self.rows * self.block_n * (2 if task.gated else 1)
        return self.splits == 1 or (tiles <= TILES and elements * self.splits <= PARTS)


LIBRARY = Choice("library")
WIDE_GATED = Choice("wide_gated", block_n=128, block_k=64, rows=128, warps=8, stages=3)


def _split(rows: int, block_n: int, splits: int, stages: int, prefetch: int) -> Choice:
    return Choice("product", block_n, 128, splits, block_n // 16, stages, prefetch, rows)


NARROW_TILES = ((64, 256, 4), (128, 128, 4), (64, 128, 6), (128, 256, 3))
"""Outputs and columns of products in eight bits, and the stages of their pipelines."""

MEASURED = {
    "2048x8192-w16-m1-add": Choice("gemv", block_n=4, block_k=512, warps=2, fuses_norm=True),
    "4096x12288-w16-m1-add": Choice("gemv", block_n=4, block_k=1024, warps=4, fuses_norm=True),
    "4096x14336-w16-m1-add": Choice("gemv", block_n=2, block_k=1024, warps=4, fuses_norm=True),
    "1024x2048-w16-m32-add": _split(32, 64, 2, 5, 1024),
    "1024x2048-w16-m64-add": _split(64, 64, 4, 4, 1024),
    "1024x3072-w16-m16-add": _split(16, 64, 3, 4, 256),
    "1024x3072-w16-m32-add": _split(32, 64, 2, 5, 1024),
    "1024x3072-w16-m64-add": _split(64, 64, 4, 4, 1024),
    "2048x2048-w16-m32-add": _split(32, 64, 2, 5, 1024),
    "2048x8192-w16-m8-add": _split(16, 128, 8, 3, 0),
    "2048x8192-w16-m16-add": _split(16, 128, 8, 3, 0),
    "2048x8192-w16-m32-add": _split(32, 128, 8, 3, 0),
    "2048x8192-w16-m64-add": _split(64, 64, 4, 4, 1024),
}


def default_choice(task: Task) -> Choice:
    measured = MEASURED.get(task.key)
    if measured is not None:
        return measured
    if task.num_rows == 1:
        return _narrowing(task) if task.can_narrow and task.num_outputs <= 1 << 15 else _gemv(task)
    if task.weight_bits == 32:
        return LIBRARY
    return _of_few_rows(task) if task.num_rows <= MAX_SKINNY_ROWS else _of_many_rows(task)


def _of_few_rows(task: Task) -> Choice:
    if task.bits == 8 and task.num_outputs > 1 << 14:
        return _product(task, 128, 128, stages=4, splits=1)
    if task.bits == 8 or (task.weight_only and not task.gated and task.num_outputs <= 1 << 14):
        stages = 3 if task.weight_only else 4
        return _product(task, 64, 256, stages, splits=4 if task.num_rows <= 32 else 2)
    return _resident(task) if _rests(task) else _skinny(task)


def _of_many_rows(task: Task) -> Choice:
    if task.weight_only:
        return _widened(task)
    few, many = MAX_GATED_ROWS // 2, MIN_WIDE_ROWS
    if task.num_outputs <= 8192:
        few, many = MAX_GATED_ROWS, MIN_WIDE_ROWS // 2
    if task.gated and task.weight_bits == 16 and task.num_rows <= few:
        return _gated(task)
    return WIDE_GATED if task.num_rows >= many and WIDE_GATED.fits(task) else LIBRARY


def fixed_choice(task: Task) -> Choice:
    """One order of summation for every number of rows, so that a row's result does not depend on it: with one split,
    the matrix unit sums each output in steps of 16 columns in their order, whatever the tile (measured: bit for bit
    the same for tiles of 16 to 256 rows); in eight bits 128 columns, and these sums in fp32."""
    if task.weight_bits == 32:
        return Choice("product", block_n=32, block_k=32, rows=16, warps=4, stages=2)
    rows = 128 if task.num_rows > MAX_SKINNY_ROWS else max(16, task.bucket)
    block_n = 128 if rows == 128 else 64
    return Choice(
        "product", block_n=block_n // 2 if task.gated else block_n, block_k=1024 // task.bits, rows=rows,
        warps=8 if rows == 128 else 4, stages=3 if rows == 128 else 6, prefetch=512,
    )  # fmt: skip


def candidates(task: Task) -> list[Choice]:
    """The default first, then its neighbours, then the library: what a tuner measures."""
    default = default_choice(task)
    found = [default]
    if task.can_narrow and task.gated:
        return found
    if default.kind in ("gemv", "narrowing"):
        found += [_gemv_of(task, rows, columns) for rows in (2, 4) for columns in (512, 1024, 2048)]
    if task.bits == 8 and task.num_rows <= MAX_SKINNY_ROWS:
        found += [_product(task, *tile, splits) for tile in NARROW_TILES for splits in (1, 2, 4)]
    elif default.kind in ("resident", "product") and task.num_rows <= MAX_SKINNY_ROWS:
        found += [_skinny(task, splits=splits) for splits in (1, 2, 4)]
        found += [_resident(task)] if task.bucket <= 16 else []
    return [choice for choice in dict.fromkeys([*found, LIBRARY]) if choice.fits(task)]


def _gemv(task: Task) -> Choice:
    if task.bits == 8:
        return _gemv_of(task, 4, 512)
    if task.num_inputs <= 1024:
        return _gemv_of(task, 2 if task.gated else 4, 512)
    if task.gated:
        return _gemv_of(task, 1 if task.num_inputs > 2048 else 2, 2048 if task.num_inputs > 2048 else 1024)
    if task.num_inputs <= 2048 and task.normed:
        return _gemv_of(task, 4 if task.num_outputs <= 8192 else 2, 1024)
    return _gemv_of(task, 4 if task.added else 2, 2048)


def _gemv_of(task: Task, rows: int, columns: int) -> Choice:
    """As many warps as give each thread 16 bytes of every row."""
    columns = min(columns, _power_of_two(task.num_inputs))
    warps = max(1, columns * min(task.weight_bits, 16) // 4096)
    return Choice("gemv", rows, columns, warps=warps, fuses_norm=True)


def _narrowing(task: Task) -> Choice:
    """The whole row in the registers of a program, 16 to 32 values for each thread."""
    columns = _power_of_two(task.num_inputs)
    if task.added:
        return Choice("narrowing", 4, columns, warps=max(1, columns // 512))
    return Choice("narrowing", 1 if task.gated else 2, columns, warps=max(1, columns // 1024))


def _rests(task: Task) -> bool:
    """Whether the weight is small enough, and the rows few enough, for `resident`."""
    elements = task.num_outputs * task.num_inputs * (2 if task.gated else 1)
    if task.weight_only or task.bucket > 16 or task.num_inputs > 4096:
        return False
    if task.bucket == 16:
        return task.added and elements <= 2 << 20
    return elements <= (16 << 20 if task.added else 8 << 20)


def _resident(task: Task) -> Choice:
    is_fused = task.normed and task.num_inputs <= 1024
    columns = min(512 if is_fused else 2048, _power_of_two(task.num_inputs))
    slices = max(1, min(8, columns // 128))
    return Choice(
        "resident", block_n=8 if task.gated else 16, block_k=columns, splits=slices, warps=slices,
        rows=task.bucket, fuses_norm=is_fused,
    )  # fmt: skip


def _skinny(task: Task, splits: int = 0) -> Choice:
    """Deep pipelines of few programs where that fills the card, splits where it does not."""
    rows = max(16, task.bucket)
    natural, columns = 1, 256
    if task.num_outputs > 1 << 16:
        block_n, stages = (64, 4) if rows == 16 else (128, 3)
    elif task.gated:
        block_n, stages = 32, 3 if rows == 64 and task.num_outputs > 4096 else 4
    else:
        is_deep = task.num_inputs <= 4096 and task.num_outputs >= 2048 and rows < 64
        block_n, stages = 64, 6 if is_deep else 4
        natural, columns = 1 if is_deep or (task.normed and rows == 64) else 2, 512 if is_deep else 256
    return _product(task, block_n, 128, stages, splits or natural, columns)


def _widened(task: Task) -> Choice:
    """Many rows of weights in eight bits: a large tile of rows, since every tile widens the weight anew."""
    is_small = not task.gated and task.num_rows <= 256
    block_n, warps = 64 if task.gated or is_small else 128, 4 if is_small else 8
    return Choice("product", block_n, 64, warps=warps, stages=4, prefetch=256, rows=256)


def _gated(task: Task) -> Choice:
    """One tile of rows, so that the weight is read once."""
    is_narrow = task.num_outputs <= 4096
    if task.bucket <= 128:
        tile = (32, 128, 1, 4, 4) if is_narrow else (64, 64, 1, 8, 6)
    else:
        tile = (32, 64, 1, 8, 5) if is_narrow else (64, 64, 1, 8, 4)
    return Choice("product", *tile, prefetch=256, rows=task.bucket)


def _product(task: Task, block_n: int, block_k: int, stages: int, splits: int, prefetch: int = 512) -> Choice:
    """Without splits where their sums would not fit."""
    warps, rows = max(4, block_n // 16), max(16, task.bucket)
    wanted = Choice("product", block_n, block_k, splits, warps, stages, prefetch, rows)
    return wanted if wanted.fits(task) else msgspec.structs.replace(wanted, splits=1)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
