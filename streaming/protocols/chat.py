"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ...runtime.batch import TokenLogprobs
from ...runtime.errors import InvalidField
from ...runtime.events import Event
from .exchange import FINISH, Answer, Exchange, Opened
from .fields import HONOURED, Harmless, Refused, Table, check_model, every, honoured, honours, parse, typed
from .generate import SAMPLING, Envelope, sampling
from .logprobs import entries
from .messages import chat_messages
from .reasoning import Split, split_whole, splitter

_NAMES = {
    "n": "n",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "top_logprobs": "logprobs",
}


class _Request(Envelope, kw_only=True):
    messages: list[Any]
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    reasoning_effort: Literal["none"] | None = None
    """Switches reasoning off in templates that can."""


FIELDS: Table = {
    **SAMPLING,
    **honours(_Request),
    **every(HONOURED, *_NAMES),
    **every(Harmless(), "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    **every(Harmless(), "parallel_tool_calls"),
    **every(Harmless(([],)), "tools", "functions"),
    **every(Harmless(("auto", "none")), "tool_choice", "function_call"),
    "store": Harmless((False,)),
    "service_tier": Harmless(("auto", "default")),
    "modalities": Harmless((["text"],)),
    "verbosity": Harmless(("medium",)),
    "response_format": Harmless(({"type": "text"},)),
    **every(Refused(), "audio", "moderation", "prediction", "prompt_cache_options", "web_search_options"),
    "prompt_logprobs": Refused("completions report them with echo and logprobs"),
}


class ChatCompletion(Exchange):
    id_prefix = "chatcmpl-"
    plain_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, body: bytes, served_model: str) -> None:
        fields = honoured(parse(body), FIELDS)
        request = typed(fields, _Request)
        check_model(request.model, served_model)
        params = request.paced(sampling(fields, _NAMES, **_logprobs(request)))
        spelled = {"prompt": "messages"}
        if "max_completion_tokens" in fields:
            spelled["max_tokens"] = "max_completion_tokens"
        options = request.chat_template_kwargs
        if request.reasoning_effort == "none":
            options = {"enable_thinking": False, **(options or {})}
        super().__init__(
            request, (request.generate(chat_messages(request.messages), params, spelled, options),)
        )

    def begin(self, opened: Opened) -> bytes:
        self._splitters = [splitter(opened.tokenizer, opened.prompts[0]) for _ in range(self.n)]
        return super().begin(opened)

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [_chunk(index, {"role": "assistant", "content": ""})]

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        logprobs = self._listed(event.logprobs)
        reasoning, text = self._split(index, event)
        chunks = [_chunk(index, {"reasoning_content": reasoning})] if reasoning else []
        if text or logprobs:
            chunks.append(_chunk(index, {"content": text}, logprobs))
        if event.finish_reason:
            chunks.append(_chunk(index, {}, finish=FINISH[event.finish_reason]))
        return chunks

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        reasoning, text = split_whole(self._splitters[index], answer.text)
        thoughts = {"reasoning_content": reasoning} if reasoning else {}
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None, **thoughts},
            "logprobs": self._listed(answer.logprobs),
            "finish_reason": answer.finish,
        }

    def _split(self, index: int, event: Event) -> Split:
        splitter = self._splitters[index]
        return split_whole(splitter, event.text) if event.finish_reason else splitter.push(event.text)

    def _listed(self, logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        return {"content": entries(logprobs, self.tokenizer), "refusal": None} if logprobs else None


def _logprobs(request: _Request) -> dict[str, Any]:
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidField("top_logprobs", "logprobs to be true as well", request.top_logprobs)
    return {"logprobs": 0} if request.logprobs and request.top_logprobs is None else {}


def _chunk(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, *, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
