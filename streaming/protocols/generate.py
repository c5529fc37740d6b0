"""The command that every protocol decodes a request into, and the fields that all routes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...runtime.errors import InvalidField, RequestError
from ...runtime.intake import Prompt
from ...runtime.params import SamplingParams
from .delivery import MILLISECONDS, Delivery, delivery
from .fields import HONOURED, Harmless, Table, every, honoured, typed

SAMPLING: Table = {
    **every(HONOURED, "temperature", "top_p", "top_k", "min_p", "seed", "logit_bias"),
    **every(HONOURED, "presence_penalty", "frequency_penalty", "repetition_penalty"),
    **every(HONOURED, "allowed_token_ids", "bad_words", "bad_token_ids", "logprob_token_ids"),
    **every(HONOURED, "stop", "stop_token_ids", "include_stop_str_in_output", "min_tokens", "ignore_eos"),
    **every(HONOURED, "skip_special_tokens", "spaces_between_special_tokens"),
}
"""Honoured on every route, spelled as in `SamplingParams`. The values are checked there."""

STREAM_OPTIONS: Table = {"include_usage": HONOURED, "include_obfuscation": Harmless((False,))}


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """One request for the engine: the arguments of its `submit`."""

    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    deadline_s: float | None = None
    user: str = ""
    cache_salt: str = ""
    template_options: dict[str, Any] | None = None
    add_bos: bool = True
    warm_up: bool = False
    spelled: dict[str, str] = {}
    """What the client calls the fields that the engine may name in an error."""

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `submit`."""
        return {field: getattr(self, field) for field in _OPTIONS}


_OPTIONS = ("priority", "deadline_s", "user", "cache_salt", "template_options", "add_bos", "warm_up")


WHOLE = 2**31 - 1
"""The stream interval of a plain answer: one event a choice."""


class Envelope(msgspec.Struct, kw_only=True):
    """What a request says beside its prompt and its sampling, on every route: its fields are honoured there."""

    model: str | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str = ""
    priority: int = 0
    deadline_ms: float | None = None
    cache_salt: str = ""
    jitney: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.deadline_ms is not None:
            MILLISECONDS("deadline_ms", self.deadline_ms)
        for field in ("deadline_ms", "priority"):
            if getattr(self, field) and getattr(self.delivery(), field) is not None:
                raise RequestError(f"jitney.{field}: {field} is set as well", field=f"jitney.{field}")

    def delivery(self) -> Delivery:
        """How the answer is to be delivered. Raises `RequestError` naming the field."""
        return delivery(self.jitney)

    def deadline_s(self) -> float | None:
        """Seconds that the answer may take, from the request's arrival."""
        deadline_ms = self.deadline_ms or self.delivery().deadline_ms
        return None if deadline_ms is None else deadline_ms / 1000

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        spelled: dict[str, str],
        template_options: dict[str, Any] | None = None,
    ) -> Generate:
        wanted = self.delivery()
        return Generate(
            prompt=prompt,
            params=params,
            priority=self.priority or wanted.priority or 0,
            deadline_s=self.deadline_s(),
            user=self.user,
            cache_salt=self.cache_salt,
            template_options=template_options,
            spelled={"deadline_s": "deadline_ms", "template_options": "chat_template_kwargs", **spelled},
        )

    def paced(self, params: SamplingParams) -> SamplingParams:
        """With one delta for all, where no stream is asked for."""
        return params if self.stream else msgspec.structs.replace(params, stream_interval=WHOLE)

    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        if self.stream_options is not None and not self.stream:
            raise InvalidField("stream_options", "stream to be true as well", self.stream_options)
        options = honoured(self.stream_options or {}, STREAM_OPTIONS, at="stream_options.")
        return typed(options, _StreamOptions, at="stream_options.").include_usage


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


def sampling(body: Mapping[str, Any], names: Mapping[str, str], **fixed: Any) -> SamplingParams:
    """The sampling fields of an honoured body, and `fixed` ones. `names` maps the route's own fields to ours.

    Raises `RequestError` naming the field as the client spelled it."""
    values = {name: body[name] for name in SAMPLING if name in body}
    if "logit_bias" in values:
        values["logit_bias"] = _bias(values["logit_bias"])
    theirs: dict[str, str] = {}
    for name, ours in names.items():
        if name in body and ours in theirs:
            raise RequestError(f"{name}: {theirs[ours]} is set as well; send one of the two", field=name)
        if name in body:
            theirs[ours] = name
            values[ours] = body[name]
    try:
        return SamplingParams(**values, **fixed)
    except RequestError as exc:
        field = exc.field or ""
        if theirs.get(field, field) == field:
            raise
        raise RequestError(str(exc).replace(field, theirs[field], 1), field=theirs[field]) from None


def _bias(value: Any) -> Any:
    """JSON has string keys only: those that are token ids become integers, the rest is refused by name later."""
    if not isinstance(value, dict):
        return value
    return {int(key) if key.isdecimal() and len(key) < 20 else key: bias for key, bias in value.items()}
