"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ...runtime.batch import TokenLogprobs
from ...runtime.errors import InvalidField
from ...runtime.events import Event
from .exchange import FINISH, Answer, Exchange, Opened
from .fields import HARMLESS, HONOURED, REFUSED, Harmless, Refused, Table, check_model, honoured, parse, typed
from .generate import SAMPLING, SCHEDULING, Envelope, sampling
from .logprobs import entries
from .messages import chat_messages
from .reasoning import Split, split_whole, splitter

FIELDS: Table = {
    **SAMPLING,
    **SCHEDULING,
    "jitney": HONOURED,
    "messages": HONOURED,
    "model": HONOURED,
    "stream": HONOURED,
    "stream_options": HONOURED,
    "max_tokens": HONOURED,
    "max_completion_tokens": HONOURED,
    "n": HONOURED,
    "logprobs": HONOURED,
    "top_logprobs": HONOURED,
    "chat_template_kwargs": HONOURED,
    "metadata": HARMLESS,
    "safety_identifier": HARMLESS,
    "prompt_cache_key": HARMLESS,
    "prompt_cache_retention": HARMLESS,
    "store": Harmless((False,)),
    "service_tier": Harmless(("auto", "default")),
    "modalities": Harmless((["text"],)),
    "verbosity": Harmless(("medium",)),
    "reasoning_effort": HONOURED,
    "response_format": Harmless(({"type": "text"},)),
    "tools": Harmless(([],)),
    "tool_choice": Harmless(("auto", "none")),
    "parallel_tool_calls": HARMLESS,
    "functions": Harmless(([],)),
    "function_call": Harmless(("auto", "none")),
    "audio": REFUSED,
    "moderation": REFUSED,
    "prediction": REFUSED,
    "prompt_cache_options": REFUSED,
    "web_search_options": REFUSED,
    "prompt_logprobs": Refused("completions report them with echo and logprobs"),
}


_NAMES = {
    "n": "n",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "top_logprobs": "logprobs",
}


class _Request(Envelope, kw_only=True):
    messages: list[Any]
    logprobs: bool = False
    top_logprobs: int | None = None
    reasoning_effort: Literal["none"] | None = None
    """Switches reasoning off in templates that can."""


class ChatCompletion(Exchange):
    id_prefix = "chatcmpl-"
    plain_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, body: bytes, served_model: str) -> None:
        fields = honoured(parse(body), FIELDS)
        request = typed(fields, _Request)
        check_model(request.model, served_model)
        params = sampling(fields, _NAMES, **_logprobs(request))
        spelled = {"prompt": "messages"}
        if "max_completion_tokens" in fields:
            spelled["max_tokens"] = "max_completion_tokens"
        if request.reasoning_effort == "none":
            request.chat_template_kwargs = {"enable_thinking": False, **(request.chat_template_kwargs or {})}
        super().__init__(request, (request.generate(chat_messages(request.messages), params, spelled),))

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
