"""Sampling parameters as a user gives them, checked at the edge and resolved into what the parts behind it need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from .errors import InvalidField

MAX_CHOICES = 8
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_LISTED_IDS = 1024
MAX_SEED = 2**64


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to generate. None means the model's own default (its `generation_config.json`), else the neutral value.

    Raises `InvalidField` naming the field, what was expected and what came. Presence and frequency penalties count
    generated tokens only; the repetition penalty counts the prompt too. Log-probabilities are those of the model's
    own distribution, before bias, penalties, temperature and cuts. The order of the sampler is fixed: bans and bias,
    penalties, temperature, top_k, top_p, min_p, draw.
    """

    temperature: float | None = None
    """0 (greedy) to 2."""
    top_p: float | None = None
    """Above 0, up to 1: the smallest set of likeliest tokens whose probabilities reach it."""
    top_p_decay: float = 1.0
    """Above 0, up to 1: with each generated token top_p is multiplied by it, and never falls below `top_p_bound`."""
    top_p_bound: float = 0.0
    top_k: int | None = None
    """0 or -1: off."""
    min_p: float | None = None
    """0 to 1: cut tokens less likely than this times the likeliest."""
    seed: int | None = None
    """0 to 2**64 - 1. The same seed, prompt and settings give the same tokens, whatever else runs. None: random."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    bad_token_ids: list[int] | None = None
    bad_token_sequences: list[list[int]] | None = None
    """After the ids before it, the last id of a sequence is never drawn."""
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    max_tokens: int | None = None
    """None: the rest of the context."""
    min_tokens: int = 0
    """Neither an end id nor a stop string ends a choice before this many tokens."""
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    """None: none; 0: of the sampled token; k: also of the k likeliest, up to 20."""
    logprob_token_ids: list[int] | None = None
    """Also report these ids at every position (with `logprobs`)."""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    """False: token ids only; stop strings are then refused."""
    output: Literal["delta", "cumulative", "final"] = "delta"
    """Whether an event's text and ids are what is new, all so far, or come only with the finish."""
    stream_interval: int = 1
    """Emit a delta once at least this many tokens of a choice are new."""

    def __post_init__(self) -> None:
        for field, check in _CHECKS.items():
            value = getattr(self, field)
            if value is not None or field in _NEVER_NONE:
                check(field, value)
        if self.stop and not self.detokenize:
            raise InvalidField("stop", "no stop strings with detokenize=False", self.stop)
        if self.logprob_token_ids is not None and self.logprobs is None:
            raise InvalidField("logprob_token_ids", "logprobs to be set as well", self.logprob_token_ids)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidField("allowed_token_ids", "at least one id", self.allowed_token_ids)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidField("min_tokens", f"at most max_tokens ({self.max_tokens})", self.min_tokens)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whichever form they came in."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


Check = Callable[[str, Any], None]


def _number(low: float, high: float, *, open_low: bool = False) -> Check:
    expected = f"a number {'above' if open_low else 'from'} {low:g} {'up ' if open_low else ''}to {high:g}"

    def check(field: str, value: Any) -> None:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not ok or not low <= value <= high or (open_low and value == low):
            raise InvalidField(field, expected, value)

    return check


def _integer(low: int, high: int) -> Check:
    def check(field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidField(field, f"an integer from {low} to {high}", value)

    return check


def _flag(field: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidField(field, "true or false", value)


def _ids(field: str, value: Any) -> None:
    ok = isinstance(value, (list, tuple)) and len(value) <= MAX_LISTED_IDS
    if not ok or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value):
        raise InvalidField(field, f"a list of up to {MAX_LISTED_IDS} token ids", value)


def _sequences(field: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_LISTED_IDS or not all(value):
        raise InvalidField(field, f"a list of up to {MAX_LISTED_IDS} lists of token ids, none empty", value)
    for sequence in value:
        _ids(field, sequence)


def _texts(most: int, *, or_one: bool = False) -> Check:
    expected = f"a list of up to {most} strings of 1 to {MAX_STOP_CHARS} characters"
    expected = f"a string, or {expected}" if or_one else expected

    def check(field: str, value: Any) -> None:
        values = [value] if or_one and isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or len(values) > most or not all(map(_is_text, values)):
            raise InvalidField(field, expected, value)

    return check


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_STOP_CHARS and is_utf8(value)


def is_utf8(text: str) -> bool:
    """Whether the text has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bias(field: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > MAX_LISTED_IDS:
        raise InvalidField(field, f"a map of up to {MAX_LISTED_IDS} token ids to numbers", value)
    for key, bias in value.items():
        if isinstance(key, bool) or not isinstance(key, int) or key < 0:
            raise InvalidField(field, "token ids as keys", key)
        _number(-100, 100)(f"{field}[{key}]", bias)


def _output(field: str, value: Any) -> None:
    if value not in ("delta", "cumulative", "final"):
        raise InvalidField(field, "'delta', 'cumulative' or 'final'", value)


_CHECKS: dict[str, Check] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, open_low=True),
    "top_p_decay": _number(0, 1, open_low=True),
    "top_p_bound": _number(0, 1),
    "top_k": _integer(-1, 2**31 - 1),
    "min_p": _number(0, 1),
    "seed": _integer(0, MAX_SEED - 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": _number(0.01, 10),
    "logit_bias": _bias,
    "allowed_token_ids": _ids,
    "bad_words": _texts(MAX_LISTED_IDS),
    "bad_token_ids": _ids,
    "bad_token_sequences": _sequences,
    "stop": _texts(MAX_STOPS, or_one=True),
    "stop_token_ids": _ids,
    "include_stop_str_in_output": _flag,
    "max_tokens": _integer(1, 2**31 - 1),
    "min_tokens": _integer(0, 2**31 - 1),
    "ignore_eos": _flag,
    "n": _integer(1, MAX_CHOICES),
    "logprobs": _integer(0, MAX_LOGPROBS),
    "logprob_token_ids": _ids,
    "prompt_logprobs": _integer(0, MAX_LOGPROBS),
    "skip_special_tokens": _flag,
    "spaces_between_special_tokens": _flag,
    "detokenize": _flag,
    "output": _output,
    "stream_interval": _integer(1, 2**31 - 1),
}

_NEVER_NONE = {
    field
    for field, default in zip(_CHECKS, SamplingParams.__struct_defaults__, strict=True)
    if default is not None
}
