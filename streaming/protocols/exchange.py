"""One HTTP request and its answer, plain or as server-sent events. Routes differ in their choices only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import msgspec

from ...runtime.backend import Tokenizer
from ...runtime.batch import TokenLogprobs
from ...runtime.errors import RequestError
from ...runtime.events import Event, Usage
from .errors import Refusal, failure
from .generate import Envelope, Generate

FINISH = {"stop_token": "stop", "stop_string": "stop", "length": "length"}
"""Finish reasons of a whole answer; the others are failures."""


class Opened(msgspec.Struct, frozen=True):
    """What is known once the engine has accepted the request. `created` is in Unix seconds."""

    id: str
    created: int
    model: str
    tokenizer: Tokenizer
    prompts: tuple[tuple[int, ...], ...] = ()
    """Of each of the exchange's `generates`, as token ids."""


class Answer:
    """One choice of a plain answer, as it grows."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        self.first_token = ""
        """Of the prompt: it has no log-probability, so no entry names it."""
        self.finish = ""

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def add(self, event: Event) -> None:
        self._texts.append(event.text)
        self.logprobs += event.logprobs or ()
        if event.finish_reason:
            self.finish = FINISH[event.finish_reason]


class Exchange(ABC):
    """Decoded from a body by the subclass's constructor, which raises `RequestError`. Then, in this order: `begin`,
    `feed` for each event of each of `generates`, and `end` (a stream) or `result` (a plain answer).

    What `begin`, `feed` and `end` return is to be sent at once, and is empty for a plain answer. Choices are counted
    over all of `generates`: choice i of generates[k] has index k * n + i.
    """

    id_prefix: ClassVar[str]
    plain_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, envelope: Envelope, generates: tuple[Generate, ...]) -> None:
        self.is_stream = envelope.stream
        self.generates = generates
        self.n = generates[0].params.n
        self.delivery = envelope.delivery()
        if self.delivery.credit is not None:
            raise RequestError("jitney.credit: belongs to the WebSocket", field="jitney.credit")
        self._include_usage = envelope.include_usage()
        self._usages: list[Usage] = []
        self._failure: Refusal | None = None
        self.answers = [Answer() for _ in range(self.n * len(generates))]

    def begin(self, opened: Opened) -> bytes:
        self._opened = opened
        return self._sse([chunk for index in range(len(self.answers)) for chunk in self.opening(index)])

    def feed(self, which: int, event: Event) -> bytes:
        """An event of `generates[which]`."""
        if event.kind == "done":
            self._usages.append(event.usage or Usage())
        self._failure = failure(event) or self._failure
        if event.kind == "done" or (event.finish_reason is not None and event.finish_reason not in FINISH):
            return b""
        index = which * self.n + event.index
        if self.is_stream:
            return self._sse(self.chunks(index, event))
        self.answers[index].add(event)
        return b""

    def end(self) -> bytes:
        """The end of a stream: usage and the end mark, or the error, and then no end mark."""
        if self._failure:
            return b"data: " + self._failure.body() + b"\n\n"
        usage = b""
        if self._include_usage:
            usage = _framed({**self._head(self.chunk_object), "choices": [], "usage": self._usage_object()})
        return usage + b"data: [DONE]\n\n"

    def result(self) -> bytes | Refusal:
        """The plain answer."""
        if self._failure:
            return self._failure
        choices = [self.choice(index, answer) for index, answer in enumerate(self.answers)]
        head = self._head(self.plain_object)
        return msgspec.json.encode({**head, "choices": choices, "usage": self._usage_object()})

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The chunks that open a choice, before any token."""
        return []

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        """The chunks of a delta or a finish."""
        return []

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """A whole choice of a plain answer."""

    @property
    def tokenizer(self) -> Tokenizer:
        return self._opened.tokenizer

    def _head(self, kind: str) -> dict[str, Any]:
        opened = self._opened
        return {"id": opened.id, "object": kind, "created": opened.created, "model": opened.model}

    def _sse(self, choices: list[dict[str, Any]]) -> bytes:
        if not self.is_stream:
            return b""
        head = self._head(self.chunk_object)
        usage = {"usage": None} if self._include_usage else {}
        return b"".join(_framed({**head, "choices": [choice], **usage}) for choice in choices)

    def _usage_object(self) -> dict[str, Any]:
        prompt = sum(usage.prompt_tokens for usage in self._usages)
        completion = sum(usage.completion_tokens for usage in self._usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in self._usages)},
        }


def _framed(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
