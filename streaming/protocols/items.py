"""The output items of a response of OpenAI's Responses API: one of reasoning, one with the answer."""

from __future__ import annotations

from typing import Any, Literal

Kind = Literal["reasoning", "message"]


class OutputItem:
    """One item as it grows. Each has one part, at content index 0."""

    __slots__ = ("id", "index", "kind", "logprobs", "status", "texts")

    def __init__(self, kind: Kind, response_id: str, index: int) -> None:
        self.kind = kind
        self.index = index
        prefix = "rs" if kind == "reasoning" else "msg"
        self.id = f"{prefix}_{response_id.removeprefix('resp_')}"
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.status = "in_progress"

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def text_event(self) -> str:
        """What its deltas' type begins with."""
        return "response.reasoning_text" if self.kind == "reasoning" else "response.output_text"

    @property
    def place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

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
        if self.kind == "reasoning":
            return {
                "id": self.id,
                "type": "reasoning",
                "summary": [],
                "status": self.status,
                "content": content,
            }
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "content": content,
        }
