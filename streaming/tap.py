"""Plain deltas on their way from a log to a socket, within the append that brings them.

Nearly every token of nearly every answer comes this way. One small object holds all that this takes: with hundreds of
answers a token costs mostly memory that is not in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime.text.pieces import Piece
from .line import Line
from .protocols.items import PlainDelta


class Tap:
    """`take` is a log's; `seq` is that of the last piece it took, in `num_frames` frames."""

    __slots__ = ("_head", "_line", "_middle", "_shift", "_tail", "num_frames", "seq")

    def __init__(self, delta: PlainDelta, line: Line, seq: int) -> None:
        self._head, self._middle, self._tail, self._shift = delta
        self._line = line
        self.seq = seq
        self.num_frames = 0

    def take(self, pieces: Sequence[Piece], seq: int) -> bool:
        """False where the socket lags."""
        line = self._line
        if not line.has_room:
            return False
        quoted = pieces[0].quoted if len(pieces) == 1 else b"".join([piece.quoted for piece in pieces])
        line.put_frame(b"%b%d%b%b%b" % (self._head, seq + self._shift, self._middle, quoted, self._tail))
        self.seq = seq
        self.num_frames += 1
        return True
