"""The frames of one answer in the AI SDK's `WebSocketChatTransport` protocol.

Frames are numbered as they are delivered, from 0, for each request anew: the transport takes a gap for a protocol
error. A request that resumes is fed the whole log again and so repeats the answer, under the same message id, and
the page replaces what it had.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...runtime.events import Event, Times, Usage
from .errors import failure
from .reasoning import ReasoningSplitter, Split

FINISH = {"stop_token": "stop", "stop_string": "stop", "length": "length", "deadline": "interrupted"}
"""The SDK's finish reasons; a cancelled answer ends with an `abort` chunk, a failed one with an `error`."""


def plain_frame(kind: str, request_id: str, **fields: Any) -> bytes:
    """A frame that is not a chunk: `start`, `end`, `error` or `no-active`."""
    return msgspec.json.encode({"type": kind, "requestId": request_id, **fields})


class UIChunks:
    """Encodes one answer for one request: `begin`, then `feed` with each event of the log from its first, until it
    `is_done`."""

    def __init__(self, request_id: str, *, model: str) -> None:
        self.request_id = request_id
        self.is_done = False
        self._model = model
        self._sequence = 0
        self._splitter = ReasoningSplitter(None)
        self._part = ""
        self._has_step = False

    def begin(
        self, response_id: str, splitter: ReasoningSplitter, *, sent_as: str, created_at: float
    ) -> list[bytes]:
        """`sent_as` is the request that the answer was sent for, here or on an earlier socket; `created_at` is in Unix
        seconds. The message's id follows from the response's."""
        self._splitter = splitter
        about = {
            "responseId": response_id,
            "requestId": sent_as,
            "model": self._model,
            "createdAt": int(created_at * 1000),
        }
        message_id = f"msg_{response_id.removeprefix('resp_')}"
        return [self._chunk("start", messageId=message_id, messageMetadata=about)]

    def status(self, **data: Any) -> bytes:
        """News of an answer that has not begun to speak. The page is shown it and does not keep it."""
        return self._chunk("data-status", data=data, transient=True)

    def feed(self, event: Event) -> list[bytes]:
        if event.kind == "done":
            self.is_done = True
            return [
                *self._show(self._splitter.flush()),
                *self._close(),
                *self._ending(event),
                plain_frame("end", self.request_id),
            ]
        return self.add(event.text)

    def add(self, text: str) -> list[bytes]:
        """As `feed`, of a delta of which no more is known."""
        return self._show(self._splitter.push(text)) if text else []

    def _show(self, new: Split) -> list[bytes]:
        return [*self._add("reasoning", new.reasoning), *self._add("text", new.text)]

    def _add(self, part: str, text: str) -> list[bytes]:
        """Text of a part, which opens with its first and closes the one before it."""
        if not text:
            return []
        frames: list[bytes] = []
        if part != self._part:
            frames = [self._chunk("start-step")] if not self._has_step else self._close_part()
            frames.append(self._chunk(f"{part}-start", id=f"{part}-0"))
            self._part, self._has_step = part, True
        return [*frames, self._chunk(f"{part}-delta", id=f"{part}-0", delta=text)]

    def _close_part(self) -> list[bytes]:
        return [self._chunk(f"{self._part}-end", id=f"{self._part}-0")]

    def _close(self) -> list[bytes]:
        return [*self._close_part(), self._chunk("finish-step")] if self._has_step else []

    def _ending(self, event: Event) -> list[bytes]:
        about = _figures(event)
        failed = failure(event)
        if failed is None or event.finish_reason == "deadline":
            return [
                self._chunk("finish", finishReason=FINISH[event.finish_reason or ""], messageMetadata=about)
            ]
        figures = self._chunk("message-metadata", messageMetadata=about)
        if event.finish_reason == "cancelled":
            return [figures, self._chunk("abort", reason=failed.message)]
        return [figures, self._chunk("error", errorText=failed.message)]

    def _chunk(self, kind: str, **fields: Any) -> bytes:
        sequence, self._sequence = self._sequence, self._sequence + 1
        chunk = {"type": kind, **fields}
        return plain_frame("chunk", self.request_id, sequence=sequence, chunk=chunk)


def _figures(event: Event) -> dict[str, Any]:
    """What the page shows under an answer: tokens, and how fast they came. Milliseconds."""
    usage, times = event.usage or Usage(), event.times or Times()
    about: dict[str, Any] = {
        "finishReason": event.finish_reason,
        "usage": {
            "inputTokens": usage.prompt_tokens,
            "outputTokens": usage.completion_tokens,
            "totalTokens": usage.prompt_tokens + usage.completion_tokens,
            "cachedInputTokens": usage.cached_tokens,
        },
    }
    for name, seconds in (
        ("queuedMs", times.queued_s),
        ("timeToFirstTokenMs", times.first_token_s),
        ("totalMs", times.total_s),
    ):
        if seconds is not None:
            about[name] = round(seconds * 1000, 1)
    if times.first_token_s is not None and times.total_s is not None and usage.completion_tokens > 1:
        decoding_s = max(times.total_s - times.first_token_s, 1e-6)
        about["tokensPerSecond"] = round((usage.completion_tokens - 1) / decoding_s, 2)
    return about
