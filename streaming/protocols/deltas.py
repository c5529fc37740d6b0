"""The frame of which there are many: a delta of text, merged from as many log entries as a reader lagged behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .items import OutputItem

MAX_CHARS = 2**15
"""A merged delta grows no further than this."""


class DeltaFrame:
    """The frame of an item's deltas, of which all is the same but the number, the text and the scores."""

    def __init__(self, item: OutputItem, stream_id: str | None) -> None:
        lane = b"" if stream_id is None else b',"stream_id":%b' % _encode(stream_id)
        self._head = b'{"type":"%b.delta","sequence_number":' % item.text_event.encode()
        self._middle = b'%b,"item_id":%b,"delta":' % (lane, _encode(item.id))
        self._tail = b',"output_index":%d,"content_index":0}' % item.index
        self._unscored = b',"logprobs":[]' + self._tail if item.kind == "message" else self._tail

    def of(self, number: int, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> bytes:
        tail = b',"logprobs":%b%b' % (_encode(logprobs), self._tail) if logprobs else self._unscored
        return b"%b%d%b%b%b" % (self._head, number, self._middle, _encode(text), tail)


class Delta:
    """Grows while neighbouring entries come, and takes the highest of their numbers."""

    def __init__(self, frame: DeltaFrame, number: int, text: str, logprobs: list[dict[str, Any]]) -> None:
        self._frame = frame
        self._number = number
        self._num_chars = len(text)
        self._texts = [text]
        self._logprobs = logprobs

    def extend(self, number: int, text: str, logprobs: list[dict[str, Any]]) -> bool:
        """False where it would become too long."""
        self._num_chars += len(text)
        if self._num_chars > MAX_CHARS:
            return False
        self._number = number
        self._texts.append(text)
        self._logprobs = self._logprobs + logprobs
        return True

    def frame(self) -> bytes:
        return self._frame.of(self._number, "".join(self._texts), self._logprobs)


_encode = msgspec.json.Encoder().encode
