"""Sampling parameters as a user gives them, checked at the edge and resolved into what the parts behind it need."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from .checks import check_fields, expecting, integer, is_integer, is_number, is_text, number
from .errors import InvalidField

MAX_CHOICES = 8
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_LISTED_IDS = 1024
MAX_SEED = 2**64
MAX_COUNT = 2**31 - 1


def _is_ids(value: Any) -> bool:
    ok = isinstance(value, (list, tuple)) and len(value) <= MAX_LISTED_IDS
    return ok and all(is_integer(v) and v >= 0 for v in value)


def _is_texts(value: Any, most: int) -> bool:
    ok = isinstance(value, (list, tuple)) and len(value) <= most
    return ok and all(is_text(v, 1, MAX_STOP_CHARS) for v in value)


def _texts(most: int) -> str:
    return f"a list of up to {most} strings of 1 to {MAX_STOP_CHARS} characters"


def _bias(field: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > MAX_LISTED_IDS:
        raise InvalidField(field, f"a map of up to {MAX_LISTED_IDS} token ids to numbers", value)
    for key, bias in value.items():
        if not is_integer(key) or key < 0:
            raise InvalidField(field, "token ids as keys", key)
        number(-100, 100)(f"{field}[{key}]", bias)


def _sequences(field: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_LISTED_IDS or not all(value):
        raise InvalidField(field, f"a list of up to {MAX_LISTED_IDS} lists of token ids, none empty", value)
    for sequence in value:
        _ids(field, sequence)


_share = expecting("a number above 0 up to 1", lambda value: is_number(value) and 0 < value <= 1)
_ids = expecting(f"a list of up to {MAX_LISTED_IDS} token ids", _is_ids)
_words = expecting(_texts(MAX_LISTED_IDS), lambda value: _is_texts(value, MAX_LISTED_IDS))
_stop = expecting(
    f"a string, or {_texts(MAX_STOPS)}",
    lambda value: _is_texts([value] if isinstance(value, str) else value, MAX_STOPS),
)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to generate. None means the model's own default (its `generation_config.json`), else the neutral value.

    Raises `InvalidField` naming the field, what was expected and what came. Presence and frequency penalties count
    generated tokens only; the repetition penalty counts the prompt too. Log-probabilities are those of the model's
    own distribution, before bias, penalties, temperature and cuts. The order of the sampler is fixed: bans and bias,
    penalties, temperature, top_k, top_p, min_p, draw.
    """

    temperature: Annotated[float | None, number(0, 2)] = None
    """0 (greedy) to 2."""
    top_p: Annotated[float | None, _share] = None
    """Above 0, up to 1: the smallest set of likeliest tokens whose probabilities reach it."""
    top_p_decay: Annotated[float, _share] = 1.0
    """Above 0, up to 1: with each generated token top_p is multiplied by it, and never falls below `top_p_bound`."""
    top_p_bound: Annotated[float, number(0, 1)] = 0.0
    top_k: Annotated[int | None, integer(-1, MAX_COUNT)] = None
    """0 or -1: off."""
    min_p: Annotated[float | None, number(0, 1)] = None
    """0 to 1: cut tokens less likely than this times the likeliest."""
    seed: Annotated[int | None, integer(0, MAX_SEED - 1)] = None
    """0 to 2**64 - 1. The same seed, prompt and settings give the same tokens, whatever else runs. None: random."""
    presence_penalty: Annotated[float, number(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, number(-2, 2)] = 0.0
    repetition_penalty: Annotated[float | None, number(0.01, 10)] = None
    logit_bias: Annotated[dict[int, float] | None, _bias] = None
    allowed_token_ids: Annotated[list[int] | None, _ids] = None
    bad_words: Annotated[list[str] | None, _words] = None
    bad_token_ids: Annotated[list[int] | None, _ids] = None
    bad_token_sequences: Annotated[list[list[int]] | None, _sequences] = None
    """After the ids before it, the last id of a sequence is never drawn."""
    stop: Annotated[str | list[str] | None, _stop] = None
    stop_token_ids: Annotated[list[int] | None, _ids] = None
    include_stop_str_in_output: bool = False
    max_tokens: Annotated[int | None, integer(1, MAX_COUNT)] = None
    """None: the rest of the context."""
    min_tokens: Annotated[int, integer(0, MAX_COUNT)] = 0
    """Neither an end id nor a stop string ends a choice before this many tokens."""
    ignore_eos: bool = False
    n: Annotated[int, integer(1, MAX_CHOICES)] = 1
    logprobs: Annotated[int | None, integer(0, MAX_LOGPROBS)] = None
    """None: none; 0: of the sampled token; k: also of the k likeliest, up to 20."""
    logprob_token_ids: Annotated[list[int] | None, _ids] = None
    """Also report these ids at every position (with `logprobs`)."""
    prompt_logprobs: Annotated[int | None, integer(0, MAX_LOGPROBS)] = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    """False: token ids only; stop strings are then refused."""
    output: Literal["delta", "cumulative", "final"] = "delta"
    """Whether an event's text and ids are what is new, all so far, or come only with the finish."""
    stream_interval: Annotated[int, integer(1, MAX_COUNT)] = 1
    """Emit a delta once at least this many tokens of a choice are new."""

    def __post_init__(self) -> None:
        check_fields(self)
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
