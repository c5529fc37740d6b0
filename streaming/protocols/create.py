"""`response.create` of OpenAI's Responses API, for text: the fields, and the command that it decodes into."""

from __future__ import annotations

from typing import Any

from ...runtime.backend import Message
from ...runtime.errors import InvalidField
from .fields import HARMLESS, HONOURED, REFUSED, Harmless, Refused, Table, check_model, honoured, typed
from .generate import SAMPLING, SCHEDULING, Envelope, Generate, sampling
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
