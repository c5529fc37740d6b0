"""The edge: a prompt and parameters in, a `Generate` out, or one clear refusal. Nothing behind it validates again.

Tokenising runs on threads of its own, so a long prompt never holds the loop, nor, where there are cores for several,
the prompts behind it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Annotated, Any

import msgspec

from .backend import Backend
from .batch import RowSampling
from .checks import check_fields, expecting, integer, is_number, is_text, is_utf8
from .errors import ContextLengthExceeded, InvalidField
from .messages import Generate
from .params import SamplingParams

Prompt = str | Sequence[int] | Sequence[dict[str, Any]]
"""Plain text (never templated), token ids, or chat messages (rendered by the model's template)."""

_SECONDS = expecting("a positive number of seconds", lambda value: is_number(value) and 0 < value < 1e9)
_LABEL = expecting("text of up to 256 characters", lambda value: is_text(value, 0, 256))
_NAME = expecting("text of 1 to 256 characters", lambda value: is_text(value, 1, 256))
_OPTIONS = expecting("a map of names to values", lambda value: isinstance(value, dict))
_ID_FIELDS = ("allowed_token_ids", "bad_token_ids", "stop_token_ids", "logprob_token_ids", "logit_bias")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with a request besides how to sample. Raises `InvalidField`."""

    priority: Annotated[int, integer(-100, 100)] = 0
    """Lower goes first."""
    deadline_s: Annotated[float | None, _SECONDS] = None
    """Seconds from now after which the request ends, wherever it is."""
    user: Annotated[str, _LABEL] = ""
    """Whose share of the engine it uses."""
    cache_salt: Annotated[str, _LABEL] = ""
    """Requests share cached prefixes only with requests of the same salt."""
    use_prefix_cache: bool = True
    add_bos: bool = True
    """Whether the model's BOS comes before a prompt that is text."""
    warm_up: bool = False
    """Generate nothing: compute the prompt and pin its pages for as long as the response is kept."""
    response_id: Annotated[str | None, _NAME] = None
    template_options: Annotated[dict[str, Any] | None, _OPTIONS] = None

    def __post_init__(self) -> None:
        check_fields(self)


class Intake:
    """Turns what users send into what the worker runs. `context_length` bounds prompt and answer together."""

    def __init__(
        self, backend: Backend, context_length: int, executor: Executor, clock: Callable[[], float]
    ) -> None:
        self._backend = backend
        self._tokenizer = backend.tokenizer
        self._context_length = context_length
        self._executor = executor
        self._clock = clock

    async def encode(
        self, prompt: Prompt, *, add_bos: bool = True, template_options: dict[str, Any] | None = None
    ) -> tuple[int, ...]:
        """The prompt's token ids. Raises `RequestError` naming the field."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._encode, prompt, template_options, add_bos)

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids of the vocabulary, special tokens included."""
        decode = partial(self._tokenizer.decode, token_ids, skip_special_tokens=False)
        return await asyncio.get_running_loop().run_in_executor(self._executor, decode)

    async def accept(self, prompt: Prompt, params: SamplingParams, options: Options) -> Generate:
        """Raises `RequestError` naming the field."""
        arrival = self._clock()
        self._check_ids(params)
        if options.warm_up and params.n > 1:
            raise InvalidField("n", "1 with warm_up", params.n)
        loop = asyncio.get_running_loop()
        ids, bad = await loop.run_in_executor(self._executor, self._tokenize, prompt, params, options)
        max_tokens = self._max_tokens(len(ids), params)
        return Generate(
            id=options.response_id or f"resp_{secrets.token_hex(12)}",
            prompt=ids,
            sampling=self._sampling(params, bad),
            n=params.n,
            max_tokens=0 if options.warm_up else max_tokens,
            priority=options.priority,
            user=options.user,
            arrival=arrival,
            deadline=None if options.deadline_s is None else arrival + options.deadline_s,
            salt=options.cache_salt.encode(),
            use_prefix_cache=options.use_prefix_cache,
            pin=options.warm_up,
        )

    def _tokenize(
        self, prompt: Prompt, params: SamplingParams, options: Options
    ) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """Ids of the prompt, and of every spelling of the bad words: one visit to a tokenizer's thread."""
        ids = self._encode(prompt, options.template_options, options.add_bos)
        spellings = map(self._tokenizer.word_sequences, params.bad_words or ())
        return ids, tuple(sequence for sequences in spellings for sequence in sequences)

    def _encode(self, prompt: Any, template_options: dict[str, Any] | None, add_bos: bool) -> tuple[int, ...]:
        self._check_size(prompt)
        if isinstance(prompt, str):
            if not is_utf8(prompt):
                raise InvalidField("prompt", "text that UTF-8 can hold", prompt)
            return tuple(self._tokenizer.encode(prompt, add_bos=add_bos))
        if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)) or not prompt:
            raise InvalidField("prompt", "text, token ids or chat messages, not empty", prompt)
        if all(isinstance(message, dict) for message in prompt):
            return tuple(self._tokenizer.encode_chat(prompt, template_options=template_options))
        for token in prompt:
            in_range = isinstance(token, int) and 0 <= token < self._backend.vocab_size
            if not in_range or isinstance(token, bool):
                raise InvalidField("prompt", f"token ids from 0 to {self._backend.vocab_size - 1}", token)
        return tuple(prompt)

    def _check_size(self, prompt: Any) -> None:
        """Refuse what cannot fit before it is tokenised: that takes seconds, and others may wait for their turn."""
        size = _num_chars(prompt)
        if size > self._context_length * self._tokenizer.longest_token:
            raise ContextLengthExceeded(
                f"the prompt's {size} characters cannot fit the context of {self._context_length} tokens",
                field="prompt",
            )

    def _max_tokens(self, prompt_len: int, params: SamplingParams) -> int:
        if prompt_len == 0:
            raise InvalidField("prompt", "at least one token", "")
        room = self._context_length - prompt_len
        if room < 1 or (params.max_tokens or 1) > room:
            asked = f" and max_tokens {params.max_tokens}" if params.max_tokens else ""
            raise ContextLengthExceeded(
                f"the prompt's {prompt_len} tokens{asked} exceed the context of {self._context_length} tokens",
                field="max_tokens" if room >= 1 else "prompt",
            )
        if params.min_tokens > (params.max_tokens or room):
            raise InvalidField("min_tokens", f"at most {room}, what the context leaves", params.min_tokens)
        return params.max_tokens or room

    def _check_ids(self, params: SamplingParams) -> None:
        size = self._backend.vocab_size
        named = {field: getattr(params, field) or () for field in _ID_FIELDS}
        named["bad_token_sequences"] = [max(sequence) for sequence in params.bad_token_sequences or ()]
        for field, tokens in named.items():
            for token in tokens:
                if token >= size:
                    raise InvalidField(field, f"token ids from 0 to {size - 1}", token)

    def _sampling(self, params: SamplingParams, bad: tuple[tuple[int, ...], ...]) -> RowSampling:
        model = self._backend.defaults
        end_ids = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            end_ids.update(model.end_token_ids)
        return RowSampling(
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            temperature=_temperature(float(_first(params.temperature, model.temperature, 1.0))),
            top_p=float(_first(params.top_p, model.top_p, 1.0)),
            top_p_decay=float(params.top_p_decay),
            top_p_bound=float(params.top_p_bound),
            top_k=max(0, _first(params.top_k, model.top_k, 0)),
            min_p=float(_first(params.min_p, model.min_p, 0.0)),
            presence_penalty=float(params.presence_penalty),
            frequency_penalty=float(params.frequency_penalty),
            repetition_penalty=float(_first(params.repetition_penalty, model.repetition_penalty, 1.0)),
            logit_bias=tuple(
                (token, float(bias)) for token, bias in sorted((params.logit_bias or {}).items())
            ),
            allowed_token_ids=tuple(sorted(set(params.allowed_token_ids or ()))),
            bad_token_sequences=(
                *bad,
                *((token,) for token in params.bad_token_ids or ()),
                *map(tuple, params.bad_token_sequences or ()),
            ),
            min_tokens=params.min_tokens,
            end_token_ids=tuple(sorted(end_ids)),
            logprobs=params.logprobs,
            logprob_token_ids=tuple(params.logprob_token_ids or ()),
            prompt_logprobs=params.prompt_logprobs,
        )


def _temperature(given: float) -> float:
    """Logits divided by less than this overflow: the distribution is a point already."""
    return given if given >= 1e-5 else 0.0


def _first(given: Any, default: Any, neutral: Any) -> Any:
    return given if given is not None else default if default is not None else neutral


def _num_chars(prompt: Any) -> int:
    """Characters of text in a prompt: its own, or its messages' contents and their parts'."""
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, dict):
        return _num_chars(prompt.get("content", prompt.get("text")))
    if isinstance(prompt, (list, tuple)):
        return sum(_num_chars(part) for part in prompt if isinstance(part, (str, dict)))
    return 0
