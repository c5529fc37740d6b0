"""The events of one response of OpenAI's Responses API, in their order."""

from __future__ import annotations

from typing import Any

import msgspec

from ...runtime.backend import Tokenizer
from ...runtime.events import Event, Usage
from .create import Create
from .errors import failure
from .logprobs import entries


class ResponseEvents:
    """Encodes one response. Sequence numbers follow the log's: an event of the log always gets the same ones, however
    deltas were merged, so a reader may come back at any of them.

    Numbers: queued 0 (if it was), created, in_progress, item added, part added; a delta at log position s has
    s + `PRELUDE`; what follows the last delta goes on from there.
    """

    PRELUDE = 4

    def __init__(
        self, response_id: str, create: Create, *, model: str, created_at: float, stream_id: str | None
    ) -> None:
        self.id = response_id
        self._texts: list[str] = []
        self.is_done = False
        self._request = create.request
        self._model = model
        self._created_at = created_at
        self._stream_id = stream_id
        self._item_id = f"msg_{response_id.removeprefix('resp_')}"
        self._logprobs: list[dict[str, Any]] = []
        self._has_item = False
        self._output: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._texts)

    def queued(self) -> bytes:
        return self._frame("response.queued", 0, response=self._response("queued"))

    def created(self) -> list[bytes]:
        return [
            self._frame("response.created", 1, response=self._response("in_progress")),
            self._frame("response.in_progress", 2, response=self._response("in_progress")),
        ]

    def feed(self, event: Event, tokenizer: Tokenizer) -> list[bytes]:
        """The frames of a log entry."""
        if event.kind == "done":
            left_open = self._has_item and not self._output
            closing = self._close_item(self.PRELUDE + event.seq - 1, "incomplete") if left_open else []
            return [*closing, self.terminal(event)]
        frames = self._open_item() if not self._has_item and event.kind in ("delta", "finish") else []
        logprobs = entries(event.logprobs, tokenizer) if event.logprobs else []
        if event.text or logprobs:
            self._texts.append(event.text)
            self._logprobs += logprobs
            frames.append(self._delta(self.PRELUDE + event.seq, event.text, logprobs))
        if event.kind == "finish":
            whole = event.finish_reason in ("stop_token", "stop_string")
            frames += self._close_item(self.PRELUDE + event.seq, "completed" if whole else "incomplete")
        return frames

    def terminal(self, event: Event) -> bytes:
        """The last frame. `event` is the response's `done`, or one made up for a response that never ran."""
        self.is_done = True
        reason, refused = event.finish_reason, failure(event)
        facts: dict[str, Any] = {"usage": _usage(event.usage or Usage()), "jitney": _extras(event)}
        if reason == "length":
            name, status = "response.incomplete", "incomplete"
            facts["incomplete_details"] = {"reason": "max_output_tokens"}
        elif reason in ("cancelled", "deadline"):
            name, status = "response.incomplete", "cancelled" if reason == "cancelled" else "incomplete"
            facts["incomplete_details"] = {"reason": reason}
        elif refused is not None:
            name, status = "response.failed", "failed"
            facts["error"] = {"code": "server_error", "message": refused.message}
        else:
            name, status = "response.completed", "completed"
            facts["completed_at"] = self._created_at + ((event.times and event.times.total_s) or 0.0)
        return self._frame(name, self.PRELUDE + event.seq + 3, response=self._response(status, **facts))

    def _open_item(self) -> list[bytes]:
        self._has_item = True
        item = self._item("in_progress", [])
        return [
            self._frame("response.output_item.added", 3, output_index=0, item=item),
            self._frame("response.content_part.added", 4, part=_part("", []), **self._place()),
        ]

    def _close_item(self, number: int, status: str) -> list[bytes]:
        text = self.text
        part = _part(text, self._logprobs)
        self._output = [self._item(status, [part])]
        done = {"text": text, "logprobs": self._logprobs, **self._place()}
        return [
            self._frame("response.output_text.done", number + 1, **done),
            self._frame("response.content_part.done", number + 2, part=part, **self._place()),
            self._frame("response.output_item.done", number + 3, output_index=0, item=self._output[0]),
        ]

    def _delta(self, number: int, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        lane = msgspec.UNSET if self._stream_id is None else self._stream_id
        return _ENCODER.encode(_Delta(number, lane, self._item_id, text, logprobs))

    def _frame(self, kind: str, number: int, **fields: Any) -> bytes:
        lane = {} if self._stream_id is None else {"stream_id": self._stream_id}
        return msgspec.json.encode({"type": kind, "sequence_number": number, **lane, **fields})

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self, status: str, **facts: Any) -> dict[str, Any]:
        request = self._request
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "model": self._model,
            "output": self._output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "metadata": request.metadata or {},
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_output_tokens": request.max_output_tokens,
            "previous_response_id": request.previous_response_id,
            "truncation": "disabled",
            "text": {"format": {"type": "text"}},
            "usage": None,
            **facts,
        }


class _Delta(msgspec.Struct, frozen=True, tag_field="type", tag="response.output_text.delta"):
    """The frame of which there are many: a struct encodes several times faster than a dict is built."""

    sequence_number: int
    stream_id: str | msgspec.UnsetType
    item_id: str
    delta: str
    logprobs: list[dict[str, Any]]
    output_index: int = 0
    content_index: int = 0


_ENCODER = msgspec.json.Encoder()


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _extras(event: Event) -> dict[str, Any]:
    """What this server adds to a finished response, under its own name."""
    return {"finish_reason": event.finish_reason, "times": event.times}
