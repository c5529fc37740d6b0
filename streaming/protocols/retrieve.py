"""The query of `GET /v1/responses/{id}`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ...runtime.errors import InvalidField, RequestError
from .create import ENCRYPTED_REASONING, LOGPROBS

INCLUDABLE = (LOGPROBS, ENCRYPTED_REASONING)
"""Accepted: log-probabilities are there if the response was created with them."""


class Retrieve(msgspec.Struct, frozen=True):
    """`starting_after`: the sequence number of the last event that the client has; -1: none."""

    stream: bool = False
    starting_after: int = -1


def retrieve(query: Iterable[tuple[str, str]]) -> Retrieve:
    """Raises `RequestError` naming the parameter."""
    stream, after = False, -1
    for name, value in query:
        if name == "stream":
            stream = _flag(name, value)
        elif name == "starting_after":
            after = _number(name, value)
        elif name == "include_obfuscation" and _flag(name, value):
            raise InvalidField(name, "false", True)
        elif name in ("include", "include[]") and value not in INCLUDABLE:
            raise InvalidField("include", " or ".join(map(repr, INCLUDABLE)), value)
        elif name not in ("include_obfuscation", "include", "include[]"):
            raise RequestError(f"{name[:80]}: unknown parameter", field=name[:80])
    if after >= 0 and not stream:
        raise InvalidField("starting_after", "stream=true to go with it", after)
    return Retrieve(stream, after)


def _flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InvalidField(name, "true or false", value)
    return value == "true"


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 16):
        raise InvalidField(name, "a sequence number", value)
    return int(value)
