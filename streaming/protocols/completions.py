"""`POST /v1/completions`: prompts as text or token ids, one or several, never templated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...runtime.batch import TokenLogprobs
from ...runtime.errors import InvalidField
from ...runtime.events import Event
from .errors import failure
from .exchange import FINISH, Answer, Exchange, Opened
from .fields import HONOURED, Harmless, Refused, Table, check_model, every, honoured, honours, parse, typed
from .generate import SAMPLING, Envelope, sampling
from .logprobs import columns

MAX_PROMPTS = 64
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, which clients of this route count on."""

_NAMES = {"n": "n", "max_tokens": "max_tokens", "logprobs": "logprobs"}


class _Request(Envelope, kw_only=True):
    prompt: str | list[Any]
    echo: bool = False


FIELDS: Table = {
    **SAMPLING,
    **honours(_Request),
    **every(HONOURED, *_NAMES),
    "metadata": Harmless(),
    "best_of": Harmless((1,)),
    "suffix": Harmless(("",)),
    "prompt_logprobs": Refused("set echo and logprobs"),
}


class Completion(Exchange):
    id_prefix = "cmpl-"
    plain_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, body: bytes, served_model: str) -> None:
        fields = honoured(parse(body), FIELDS)
        request = typed(fields, _Request)
        check_model(request.model, served_model)
        echoed = {"prompt_logprobs": fields["logprobs"]} if request.echo and "logprobs" in fields else {}
        fields.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
        params = request.paced(sampling(fields, _NAMES, **echoed))
        self._echo = request.echo
        self._prompts = _prompts(request.prompt)
        self._offsets: dict[int, int] = {}
        self._scores: dict[int, list[TokenLogprobs | None]] = {}
        super().__init__(request, tuple(request.generate(prompt, params, {}) for prompt in self._prompts))

    def begin(self, opened: Opened) -> bytes:
        self._opened = opened
        self._echoes = [self._text(prompt) if self._echo else "" for prompt in self._prompts]
        self._first_ids = [prompt[:1] for prompt in opened.prompts]
        return super().begin(opened)

    def opening(self, index: int) -> list[dict[str, Any]]:
        waits = self.generates[0].params.prompt_logprobs is not None
        return [_choice(index, self._echoes[index // self.n])] if self._echo and not waits else []

    def feed(self, which: int, event: Event) -> bytes:
        if event.kind == "prompt":
            self._scores.setdefault(which, []).extend(event.prompt_logprobs or ())
            return b""
        scores = tuple(self._scores.pop(which, ()))
        if not scores or failure(event):
            return super().feed(which, event)
        echo = self._sse([self._scored(which * self.n + i, scores) for i in range(self.n)])
        return echo + super().feed(which, event)

    def _scored(self, index: int, scores: tuple[TokenLogprobs | None, ...]) -> dict[str, Any]:
        """The chunk of the whole prompt and its log-probabilities."""
        echoed = self._echoes[index // self.n]
        self.answers[index].prompt_logprobs = scores
        self.answers[index].first_token = self.tokenizer.decode(self._first_ids[index // self.n])
        return _choice(index, echoed, self._listed(index, scores))

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        logprobs = self._listed(index, event.logprobs)
        if not (event.text or logprobs or event.finish_reason):
            return []
        finish = FINISH[event.finish_reason] if event.finish_reason else None
        return [_choice(index, event.text, logprobs, finish=finish)]

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        self._offsets[index] = 0
        logprobs = self._listed(index, [*answer.prompt_logprobs, *answer.logprobs])
        return _choice(index, self._echoes[index // self.n] + answer.text, logprobs, finish=answer.finish)

    def _listed(self, index: int, logprobs: Sequence[TokenLogprobs | None] | None) -> dict[str, Any] | None:
        if not logprobs:
            return None
        first, offset = self.answers[index].first_token, self._offsets.get(index, 0)
        table, self._offsets[index] = columns(logprobs, self.tokenizer, offset=offset, first=first)
        return table

    def _text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, skip_special_tokens=False)


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None = None, *, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _prompts(given: str | list[Any]) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    if isinstance(given, str):
        return [given]
    if given and _are_ids(given):
        return [given]
    prompts = [item for item in given[:MAX_PROMPTS] if isinstance(item, str) or _are_ids(item)]
    if not 1 <= len(given) <= MAX_PROMPTS or len(prompts) != len(given):
        expected = f"a string, a list of token ids, or a list of 1 to {MAX_PROMPTS} of these"
        raise InvalidField("prompt", expected, given)
    return prompts


def _are_ids(value: Any) -> bool:
    """Without a step of Python for each: there may be a million, and this is the event loop."""
    if not isinstance(value, list) or set(map(type, value)) - {int}:
        return False
    return not value or (min(value) >= 0 and max(value) < 2**31)
