"""The output items of a response of OpenAI's Responses API, one of reasoning, one with the answer, and their deltas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import msgspec

Kind = Literal["reasoning", "message"]

MAX_CHARS = 2**15
"""A merged delta grows no further than this."""


class _DeltaFrame(msgspec.Struct):
    """A struct encodes several times faster than a dict is built."""

    type: str
    sequence_number: int
    stream_id: str | msgspec.UnsetType
    item_id: str
    delta: str
    logprobs: Sequence[dict[str, Any]] | msgspec.UnsetType
    output_index: int
    content_index: int = 0


_ENCODER = msgspec.json.Encoder()


class OutputItem:
    """One item as it grows, on one lane. Each has one part, at content index 0."""

    __slots__ = ("_frame", "id", "index", "kind", "logprobs", "status", "text_event", "texts")

    def __init__(self, kind: Kind, response_id: str, index: int, lane: str | msgspec.UnsetType) -> None:
        self.kind = kind
        self.index = index
        prefix = "rs" if kind == "reasoning" else "msg"
        self.id = f"{prefix}_{response_id.removeprefix('resp_')}"
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.status = "in_progress"
        self.text_event = "response.reasoning_text" if kind == "reasoning" else "response.output_text"
        scores = msgspec.UNSET if kind == "reasoning" else self.logprobs
        self._frame = _DeltaFrame(f"{self.text_event}.delta", 0, lane, self.id, "", scores, index)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def delta(self, number: int, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> bytes:
        """The frame of which there are many."""
        frame = self._frame
        frame.sequence_number, frame.delta = number, text
        if self.kind == "message":
            frame.logprobs = logprobs
        return _ENCODER.encode(frame)

    def plain(self, shift: int) -> PlainDelta:
        """What makes frames of deltas of text alone, whose numbers are by `shift` above the log's."""
        return PlainDelta.of(self.delta(0, ""), shift)

    def opened(self) -> dict[str, Any]:
        """The item before it has any content."""
        return self._object([])

    def empty_part(self) -> dict[str, Any]:
        return self._part("", [])

    def part(self) -> dict[str, Any]:
        return self._part(self.text, self.logprobs)

    def whole(self) -> dict[str, Any]:
        return self._object([self.part()])

    def spoken(self) -> dict[str, Any]:
        """What the event that ends its text says."""
        scores = {} if self.kind == "reasoning" else {"logprobs": self.logprobs}
        return {"text": self.text, **scores, **self.place}

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _object(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        own: dict[str, Any] = {"summary": []} if self.kind == "reasoning" else {"role": "assistant"}
        return {"id": self.id, "type": self.kind, **own, "status": self.status, "content": content}


class PlainDelta(NamedTuple):
    """Frames of one item that differ in their number, by `shift` above the log's, and their text alone: what stands
    before, between and behind these. The first and the last are the same objects for all items."""

    head: bytes
    middle: bytes
    tail: bytes
    shift: int

    @classmethod
    def of(cls, empty: bytes, shift: int) -> PlainDelta:
        """From one without text, of number 0."""
        head, number, rest = empty.partition(b'"sequence_number":0')
        middle, text, tail = rest.partition(b'"delta":"')
        assert number and text, "a delta's frame has a number and a text"
        return cls(_shared(head + number[:-1]), middle + text, _shared(tail), shift)


@cache
def _shared(part: bytes) -> bytes:
    return part


class Delta:
    """A delta of text, merged from as many log entries as a reader lagged behind. It grows while neighbouring entries
    come, and takes the highest of their numbers."""

    def __init__(self, item: OutputItem, number: int, text: str, logprobs: list[dict[str, Any]]) -> None:
        self._item = item
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
        return self._item.delta(self._number, "".join(self._texts), self._logprobs)
