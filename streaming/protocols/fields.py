"""One table per route says what becomes of each field that clients send: honoured, harmless or refused.

Nothing is accepted and ignored: a field changes the answer, or cannot change it at the value given, or is refused by
name. A name outside the table is refused too. `null` means that the field is absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from ...runtime.errors import InvalidField, ModelNotFound, RequestError

T = TypeVar("T")


class Honoured(msgspec.Struct, frozen=True):
    """The field means what its documentation says."""


class Harmless(msgspec.Struct, frozen=True):
    """Accepted at `values`, which change nothing here; at any value where `values` is None."""

    values: tuple[Any, ...] | None = None


class Refused(msgspec.Struct, frozen=True):
    """Not supported; `instead` may say what is."""

    instead: str = ""


Rule = Honoured | Harmless | Refused
Table = Mapping[str, Rule]

HONOURED = Honoured()


def every(rule: Rule, *names: str) -> Table:
    """The same rule for all of these names."""
    return dict.fromkeys(names, rule)


def honours(kind: type[msgspec.Struct]) -> Table:
    """The fields that a struct decodes."""
    return every(HONOURED, *kind.__struct_encode_fields__)


def parse(body: bytes | str, *, called: str = "body") -> dict[str, Any]:
    """The JSON object in `body`. Raises `RequestError` for anything else; `called` is what the user calls the body."""
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as exc:
        raise _malformed(body, exc, called) from None
    if not isinstance(value, dict):
        raise InvalidField(called, "a JSON object", value)
    return value


def honoured(body: Mapping[str, Any], table: Table, *, at: str = "") -> dict[str, Any]:
    """The fields of `body` that are set and honoured. Raises `RequestError` naming a field that is refused."""
    kept = {}
    for name, value in body.items():
        rule = table.get(name)
        if rule is None:
            raise RequestError(f"{at}{_clipped(name)}: unknown field", field=at + _clipped(name))
        if value is None:
            continue
        if isinstance(rule, Honoured):
            kept[name] = value
        elif isinstance(rule, Refused):
            raise RequestError(
                f"{at}{name}: not supported{rule.instead and '; ' + rule.instead}", field=at + name
            )
        elif rule.values is not None and not any(_same(value, harmless) for harmless in rule.values):
            raise InvalidField(at + name, " or ".join(map(repr, rule.values)), value)
    return kept


def typed(values: Mapping[str, Any], kind: type[T], *, at: str = "") -> T:
    """`values` as a struct. Raises `InvalidField` naming the field of the wrong type."""
    try:
        return msgspec.convert(values, kind, str_keys=True)
    except msgspec.ValidationError as exc:
        raise _named(str(exc), at) from None


def check_model(asked: str | None, served: str) -> None:
    """Raises `ModelNotFound` unless the request names the served model, or none."""
    if asked is not None and asked != served:
        message = f"model: {_clipped(asked)!r} is not served here; served: {served!r}"
        raise ModelNotFound(message, field="model")


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other


def _clipped(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _malformed(body: bytes | str, exc: Exception, called: str) -> RequestError:
    raw = body.encode(errors="replace") if isinstance(body, str) else body
    found = re.search(rb'"(\w{1,80})"\s*:\s*(-?(?:NaN|Infinity))', raw)
    if found:
        return InvalidField(found[1].decode(), "a finite number", float(found[2]))
    with suppress(ValueError, RecursionError):
        json.loads(raw)
        return RequestError(
            f"{called}: expected text that UTF-8 can hold, got half a surrogate pair", field=called
        )
    return RequestError(f"{called}: expected valid JSON: {exc}", field=called)


def _named(message: str, at: str) -> RequestError:
    """msgspec says "Expected `int`, got `str` - at `$.n`", or "Object missing required field `n`"."""
    missing = re.fullmatch(r"Object missing required field `(\w+)`(?: - at `\$\.?(.*)`)?", message)
    if missing:
        field = at + (f"{missing[2]}." if missing[2] else "") + missing[1]
        return RequestError(f"{field}: required", field=field)
    what, _, path = message.partition(" - at ")
    path = path.split("`$")[-1].strip("`.")
    field = at + path if path else at.rstrip(".") or "body"
    return RequestError(f"{field}: {what[:1].lower()}{what[1:]}", field=field)
