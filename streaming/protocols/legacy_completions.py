"""Megatron-LM's `POST /completions`, made for lm-eval-harness: a completion that may ask for no token at all."""

from __future__ import annotations

from typing import Any

import msgspec

from ...runtime.errors import InvalidField
from .completions import Completion
from .exchange import Answer
from .fields import HONOURED, Harmless, Refused, Table, every, honoured, honours, parse, typed

MAX_LOGPROBS = 10


class _Request(msgspec.Struct, kw_only=True):
    max_tokens: int
    echo: bool = False
    logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidField("echo", "true where max_tokens is 0", self.echo)
        if self.logprobs is not None and self.logprobs > MAX_LOGPROBS:
            raise InvalidField("logprobs", f"an integer from 0 to {MAX_LOGPROBS}", self.logprobs)


FIELDS: Table = {
    **honours(_Request),
    **every(HONOURED, "model", "prompt", "temperature", "top_k", "top_p", "stop"),
    **every(Harmless((1,)), "n", "best_of"),
    "debug_fname": Refused("the server writes no file that a client names"),
}


class LegacyCompletion(Completion):
    """With `max_tokens` 0 the prompt is scored: one token is generated, and left out."""

    def __init__(self, body: bytes, served_model: str) -> None:
        fields = honoured(parse(body), FIELDS)
        asked = typed(fields, _Request)
        self._is_scored_only = asked.max_tokens == 0
        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        given = {**neutral, **fields, "max_tokens": asked.max_tokens or 1}
        if asked.seed == 0:  # Megatron's way to leave it open
            del given["seed"]
        super().__init__(msgspec.json.encode(given), served_model)

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        if not self._is_scored_only:
            return super().choice(index, answer)
        scored = Answer()
        scored.prompt_logprobs, scored.first_token = answer.prompt_logprobs, answer.first_token
        scored.finish = "length"
        return super().choice(index, scored)

    def _usage_object(self) -> dict[str, Any]:
        usage = super()._usage_object()
        if self._is_scored_only:
            usage.update(completion_tokens=0, total_tokens=usage["prompt_tokens"])
        return usage
