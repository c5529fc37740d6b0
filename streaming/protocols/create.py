"""`response.create` of OpenAI's Responses API, for text: the fields, and the command that it decodes into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from ...runtime.backend import Message
from ...runtime.errors import InvalidField
from .fields import HONOURED, Harmless, Refused, Table, check_model, every, honoured, honours, typed
from .generate import SAMPLING, Envelope, Generate, sampling
from .messages import input_messages
from .responses import Facts

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"

STREAM_OPTIONS: Table = {"include_obfuscation": Harmless((False,))}
REASONING: Table = {
    "effort": Harmless(("none",)),
    **every(Harmless(("auto",)), "summary", "generate_summary"),
}
"""`none` switches reasoning off in templates that can. A summary is never made: reasoning is shown whole."""

_NAMES = {"max_output_tokens": "max_tokens", "top_logprobs": "logprobs"}

MAX_METADATA = (16, 64, 512)
"""Pairs, and characters of a key and of a value: OpenAI's. They are kept with the answer, and told in most events."""


class ResponseRequest(Envelope, kw_only=True):
    """The honoured fields of a `response.create`, beside its sampling."""

    input: str | list[Any] = []
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    include: list[str] = []
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    background: bool = False
    is_generated: bool = msgspec.field(name="generate", default=True)


FIELDS: Table = {
    **SAMPLING,
    **honours(ResponseRequest),
    **every(Harmless(), "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    **every(Harmless(), "parallel_tool_calls", "max_tool_calls"),
    "service_tier": Harmless(("auto", "default")),
    "truncation": Harmless(("disabled",)),
    "text": Harmless(({}, {"format": {"type": "text"}})),
    "tools": Harmless(([],)),
    "tool_choice": Harmless(("auto", "none")),
    **every(Refused(), "access_programs", "background_options", "context_management", "image", "moderation"),
    **every(Refused(), "prompt_cache_options"),
    "conversation": Refused("use previous_response_id"),
    "prompt": Refused("use input and instructions"),
}
"""Of both transports."""

SOCKET_FIELDS: Table = {
    **FIELDS,
    **every(HONOURED, "type", "stream_id"),
    **every(Harmless(), "stream", "background"),
}
"""Of a `response.create` frame. A socket always streams; clients of the HTTP route say so here too."""

HTTP_FIELDS: Table = {
    **FIELDS,
    "stream_id": Refused("lanes belong to the WebSocket of the same path"),
    "generate": Refused("warm-ups belong to the WebSocket of the same path"),
}


class Create:
    """One checked `response.create`, of either transport. `messages` are its own, without those of the response that
    it continues."""

    def __init__(self, body: dict[str, Any], served_model: str, table: Table) -> None:
        fields = honoured(body, table)
        self.request = request = typed(fields, ResponseRequest)
        honoured(request.stream_options or {}, STREAM_OPTIONS, at="stream_options.")
        honoured(request.reasoning or {}, REASONING, at="reasoning.")
        check_model(request.model, served_model)
        _check_metadata(request.metadata or {})
        self.model = served_model
        self.messages = input_messages(request.input)
        if not self.messages and request.previous_response_id is None:
            if request.is_generated or not request.instructions:
                raise InvalidField("input", "text, or at least one message", request.input)
        self.params = sampling(fields, _NAMES, **self._logprobs())

    def command(self, history: Sequence[Message]) -> Generate:
        """`history` is the conversation so far, this request's messages included."""
        request = self.request
        system: list[Message] = [{"role": "system", "content": request.instructions}]
        messages = [*(system if request.instructions else ()), *history]
        spelled = {"prompt": "input", "max_tokens": "max_output_tokens"}
        options = request.chat_template_kwargs
        if request.reasoning and request.reasoning.get("effort") == "none":
            options = {"enable_thinking": False, **(options or {})}
        command = request.generate(messages, self.params, spelled, options)
        return replace(command, warm_up=not request.is_generated)

    def facts(self, created_at: float) -> Facts:
        """What its response object says of it."""
        request = self.request
        return Facts(
            model=self.model,
            created_at=created_at,
            instructions=request.instructions,
            metadata=request.metadata or {},
            temperature=request.temperature,
            top_p=request.top_p,
            max_output_tokens=request.max_output_tokens,
            previous_response_id=request.previous_response_id,
            background=request.background,
            is_warm_up=not request.is_generated,
        )

    def _logprobs(self) -> dict[str, Any]:
        include = self.request.include
        for value in include:
            if value not in (LOGPROBS, ENCRYPTED_REASONING):
                raise InvalidField("include", f"{LOGPROBS!r} or {ENCRYPTED_REASONING!r}", value)
        return {"logprobs": 0} if LOGPROBS in include and self.request.top_logprobs is None else {}


def _check_metadata(given: dict[str, str]) -> None:
    most, key_chars, value_chars = MAX_METADATA
    longest = (max(map(len, given), default=0), max(map(len, given.values()), default=0))
    if len(given) > most or longest[0] > key_chars or longest[1] > value_chars:
        expected = (
            f"up to {most} pairs, keys of up to {key_chars} and values of up to {value_chars} characters"
        )
        raise InvalidField("metadata", expected, f"{len(given)} pairs, {longest[0]} and {longest[1]}")
