"""OpenAI's Responses API for text: the request, and the events of one response in their order."""

from __future__ import annotations

from typing import Any

import msgspec

from ...runtime.backend import Message, Tokenizer
from ...runtime.errors import InvalidField
from ...runtime.events import Event, Usage
from .errors import failure
from .fields import HARMLESS, HONOURED, REFUSED, Harmless, Refused, Table, check_model, honoured, typed
from .generate import SAMPLING, SCHEDULING, Envelope, Generate, sampling
from .logprobs import entries
from .messages import input_messages

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"

FIELDS: Table = {
    **SAMPLING,
    **SCHEDULING,
    "type": HONOURED,
    "stream_id": HONOURED,
    "input": HONOURED,
    "instructions": HONOURED,
    "model": HONOURED,
    "max_output_tokens": HONOURED,
    "previous_response_id": HONOURED,
    "metadata": HONOURED,
    "include": HONOURED,
    "top_logprobs": HONOURED,
    "chat_template_kwargs": HONOURED,
    "stream_options": HONOURED,
    "generate": Harmless((True,)),
    "stream": HARMLESS,
    "store": HARMLESS,
    "background": Harmless((False,)),
    "safety_identifier": HARMLESS,
    "prompt_cache_key": HARMLESS,
    "prompt_cache_retention": HARMLESS,
    "service_tier": Harmless(("auto", "default")),
    "truncation": Harmless(("disabled",)),
    "text": Harmless(({}, {"format": {"type": "text"}})),
    "reasoning": Harmless(({}, {"effort": "none"})),
    "tools": Harmless(([],)),
    "tool_choice": Harmless(("auto", "none")),
    "parallel_tool_calls": HARMLESS,
    "max_tool_calls": HARMLESS,
    "access_programs": REFUSED,
    "background_options": REFUSED,
    "context_management": REFUSED,
    "conversation": Refused("use previous_response_id"),
    "image": REFUSED,
    "moderation": REFUSED,
    "prompt": Refused("use input and instructions"),
    "prompt_cache_options": REFUSED,
}

STREAM_OPTIONS: Table = {"include_obfuscation": Harmless((False,))}

_NAMES = {"max_output_tokens": "max_tokens", "top_logprobs": "logprobs"}


class ResponseRequest(Envelope, kw_only=True):
    """The honoured fields of a `response.create`, beside its sampling."""

    stream: bool = True
    input: str | list[Any] = []
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    include: list[str] = []


class Create:
    """One checked `response.create`. `messages` are its own, without those of the response that it continues."""

    def __init__(self, body: dict[str, Any], served_model: str) -> None:
        fields = honoured(body, FIELDS)
        self.request = typed(fields, ResponseRequest)
        honoured(self.request.stream_options or {}, STREAM_OPTIONS, at="stream_options.")
        check_model(self.request.model, served_model)
        self.messages = input_messages(self.request.input)
        if not self.messages and self.request.previous_response_id is None:
            raise InvalidField("input", "text, or at least one message", self.request.input)
        self.params = sampling(fields, _NAMES, **self._logprobs())

    def generate(self, history: list[Message]) -> Generate:
        """`history` is the conversation so far, this request's messages included."""
        instructions = self.request.instructions
        system: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
        spelled = {"prompt": "input", "max_tokens": "max_output_tokens"}
        return self.request.generate(system + history, self.params, spelled)

    def _logprobs(self) -> dict[str, Any]:
        include = self.request.include
        for value in include:
            if value not in (LOGPROBS, ENCRYPTED_REASONING):
                raise InvalidField("include", f"{LOGPROBS!r} or {ENCRYPTED_REASONING!r}", value)
        return {"logprobs": 0} if LOGPROBS in include and self.request.top_logprobs is None else {}


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
        self.text = ""
        self.is_done = False
        self._request = create.request
        self._model = model
        self._created_at = created_at
        self._stream_id = stream_id
        self._item_id = f"msg_{response_id.removeprefix('resp_')}"
        self._logprobs: list[dict[str, Any]] = []
        self._has_item = False
        self._output: list[dict[str, Any]] = []

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
        logprobs = entries(event.logprobs or (), tokenizer)
        if event.text or logprobs:
            self.text += event.text
            self._logprobs += logprobs
            part = {"delta": event.text, "logprobs": logprobs, **self._place()}
            frames.append(self._frame("response.output_text.delta", self.PRELUDE + event.seq, **part))
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
        part = _part(self.text, self._logprobs)
        self._output = [self._item(status, [part])]
        done = {"text": self.text, "logprobs": self._logprobs, **self._place()}
        return [
            self._frame("response.output_text.done", number + 1, **done),
            self._frame("response.content_part.done", number + 2, part=part, **self._place()),
            self._frame("response.output_item.done", number + 3, output_index=0, item=self._output[0]),
        ]

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
