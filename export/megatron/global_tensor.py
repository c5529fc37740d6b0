"""A tensor as the model had it before it was split: pieces on disk, each at its place in the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from ...runtime.errors import ModelError
from .stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch

Rows = tuple[int, int]
"""Half-open: positions [first, end) of the first axis."""


class Piece(msgspec.Struct, frozen=True):
    """`offsets` is where the piece's first element lies in the whole."""

    offsets: tuple[int, ...]
    tensor: StoredTensor


class GlobalTensor(msgspec.Struct, frozen=True):
    """Pieces need not be in order; that they cover what is asked for, each place once, is checked when it is read."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def dtype(self) -> str:
        return self.pieces[0].tensor.dtype

    def layer(self, index: int, name: str) -> GlobalTensor:
        """One position of the first axis, which goes."""
        pieces = []
        for piece in self.pieces:
            first = piece.offsets[0]
            if first <= index < first + piece.tensor.shape[0]:
                pieces.append(Piece(piece.offsets[1:], piece.tensor.select(index - first)))
        return GlobalTensor(name, self.shape[1:], tuple(pieces))

    def read(self, rows: Iterable[Rows]) -> torch.Tensor:
        """The given rows, one range after the other, in the stored type. Raises `ModelError` where a part is missing,
        stands twice or cannot be read."""
        import torch

        rows = list(rows)
        alone = self._within(self.pieces[0], *rows[0]) if len(rows) == len(self.pieces) == 1 else None
        if alone is not None and alone.tensor.shape == (rows[0][1] - rows[0][0], *self.shape[1:]):
            return alone.tensor.read().contiguous()
        total = sum(end - first for first, end in rows)
        whole = torch.empty((total, *self.shape[1:]), dtype=getattr(torch, self._one_dtype()))
        at = 0
        for first, end in rows:
            self._fill(whole[at : at + end - first], first, end)
            at += end - first
        return whole

    def _one_dtype(self) -> str:
        dtypes = {piece.tensor.dtype for piece in self.pieces}
        if len(dtypes) != 1:
            raise ModelError(
                f"{self._where()}: expected pieces of one type, found {sorted(dtypes) or 'none'}"
            )
        return dtypes.pop()

    def _fill(self, target: torch.Tensor, first: int, end: int) -> None:
        chosen = [self._within(piece, first, end) for piece in self.pieces]
        parts = [part for part in chosen if part is not None]
        covered = sum(math.prod(part.tensor.shape) for part in parts)
        if covered != target.numel() or any(_overlap(a, b) for i, a in enumerate(parts) for b in parts[:i]):
            raise ModelError(f"{self._where()}: its pieces do not cover {self.shape}, each place once")
        for part in parts:
            place = target
            for axis, (offset, size) in enumerate(zip(part.offsets, part.tensor.shape, strict=True)):
                place = place.narrow(axis, offset, size)
            place.copy_(part.tensor.read())

    def _within(self, piece: Piece, first: int, end: int) -> Piece | None:
        """What of a piece lies in the rows [first, end); its offsets count from there."""
        start, size = piece.offsets[0], piece.tensor.shape[0]
        low, high = max(first, start), min(end, start + size)
        if low >= high:
            return None
        return Piece((low - first, *piece.offsets[1:]), piece.tensor.narrow(0, low - start, high - low))

    def _where(self) -> str:
        source = f"{self.pieces[0].tensor.path}: " if self.pieces else ""
        return f"{source}tensor {self.name}"


def _overlap(a: Piece, b: Piece) -> bool:
    spans = zip(a.offsets, a.tensor.shape, b.offsets, b.tensor.shape, strict=True)
    return all(x < y + m and y < x + n for x, n, y, m in spans)
