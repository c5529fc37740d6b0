"""The frame of which there are many: a delta of text, merged from as many log entries as a reader lagged behind."""

from __future__ import annotations

from typing import Any

import msgspec

from .items import OutputItem

MAX_CHARS = 2**15
"""A merged delta grows no further than this."""


class Delta:
    """Grows while neighbouring entries come, and takes the highest of their numbers."""

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

    def frame(self, stream_id: str | msgspec.UnsetType) -> bytes:
        return delta_frame(self._item, self._number, stream_id, "".join(self._texts), self._logprobs)


def delta_frame(
    item: OutputItem,
    number: int,
    stream_id: str | msgspec.UnsetType,
    text: str,
    logprobs: list[dict[str, Any]],
) -> bytes:
    if item.kind == "reasoning":
        return _ENCODER.encode(_ReasoningDelta(number, stream_id, item.id, text))
    return _ENCODER.encode(_TextDelta(number, stream_id, item.id, text, logprobs, item.index))


class _TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="response.output_text.delta"):
    """A struct encodes several times faster than a dict is built."""

    sequence_number: int
    stream_id: str | msgspec.UnsetType
    item_id: str
    delta: str
    logprobs: list[dict[str, Any]]
    output_index: int
    content_index: int = 0


class _ReasoningDelta(msgspec.Struct, frozen=True, tag_field="type", tag="response.reasoning_text.delta"):
    sequence_number: int
    stream_id: str | msgspec.UnsetType
    item_id: str
    delta: str
    output_index: int = 0
    content_index: int = 0


_ENCODER = msgspec.json.Encoder()
