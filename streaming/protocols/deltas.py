"""The frame of which there are many: a delta of text, merged from as many log entries as a reader lagged behind."""

from __future__ import annotations

from typing import Any

import msgspec

from .items import OutputItem


class Delta:
    """Grows while neighbouring entries come, and takes the highest of their numbers."""

    def __init__(self, item: OutputItem, number: int, text: str, logprobs: list[dict[str, Any]]) -> None:
        self.item = item
        self.num_chars = len(text)
        self._number = number
        self._texts = [text]
        self._logprobs = logprobs

    def extend(self, number: int, text: str, logprobs: list[dict[str, Any]]) -> None:
        self._number = number
        self._texts.append(text)
        self._logprobs = self._logprobs + logprobs
        self.num_chars += len(text)

    def frame(self, stream_id: str | None) -> bytes:
        lane = msgspec.UNSET if stream_id is None else stream_id
        text = self._texts[0] if len(self._texts) == 1 else "".join(self._texts)
        if self.item.kind == "reasoning":
            return _ENCODER.encode(_ReasoningDelta(self._number, lane, self.item.id, text))
        index = self.item.index
        return _ENCODER.encode(_TextDelta(self._number, lane, self.item.id, text, self._logprobs, index))


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
