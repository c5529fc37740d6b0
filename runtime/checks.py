"""Checks of what users set, written beside the fields: `Annotated[int, integer(1, 8)]`. Every refusal is an
`InvalidField` that names the field, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from .errors import InvalidField

Check = Callable[[str, Any], None]
S = TypeVar("S", bound=msgspec.Struct)


def check_fields(struct: msgspec.Struct) -> None:
    """Every field that has a check, is a flag or has choices, and is not left at its default. None is taken where the
    type has it."""
    for field, default, check in _checks(type(struct)):
        value = getattr(struct, field)
        if value is not default:
            check(field, value)


def from_fields(kind: type[S], fields: Mapping[str, Any]) -> S:
    """A struct of fields by name. One that it does not have is refused."""
    for field, value in fields.items():
        if field not in kind.__struct_fields__:
            raise InvalidField(field, f"one of {', '.join(kind.__struct_fields__)}", value)
    return kind(**fields)


@cache
def _checks(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any, Check], ...]:
    """By field: its default, checked here, and its check."""
    hints, found = get_type_hints(kind, include_extras=True), []
    for field in msgspec.structs.fields(kind):
        check = _check(hints[field.name])
        if check is None:
            continue
        if field.default is not msgspec.NODEFAULT:
            check(field.name, field.default)
        found.append((field.name, field.default, check))
    return tuple(found)


def _check(hint: Any) -> Check | None:
    kind, *checks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    kinds = get_args(kind) if NoneType in get_args(kind) else (kind,)
    if get_origin(kinds[0]) is Literal:
        return _one_of((None,) * (NoneType in kinds) + get_args(kinds[0]))
    check: Check | None = flag if kinds[0] is bool else next(iter(checks), None)
    return _or_none(check) if check and NoneType in kinds else check


def _or_none(check: Check) -> Check:
    return lambda field, value: None if value is None else check(field, value)


def expecting(expected: str, fits: Callable[[Any], bool]) -> Check:
    """The check that refuses what does not fit."""

    def check(field: str, value: Any) -> None:
        if not fits(value):
            raise InvalidField(field, expected, value)

    return check


def _one_of(values: tuple[object, ...]) -> Check:
    *known, last = map(repr, values)
    return expecting(f"{', '.join(known)} or {last}", lambda value: value in values)


def is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    return is_integer(value) or isinstance(value, float)


def is_utf8(text: str) -> bool:
    """Whether the text has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_text(value: Any, least: int, most: int) -> bool:
    return isinstance(value, str) and least <= len(value) <= most and is_utf8(value)


flag = expecting("true or false", lambda value: isinstance(value, bool))


def integer(low: int, high: int) -> Check:
    return expecting(
        f"an integer from {low} to {high}", lambda value: is_integer(value) and low <= value <= high
    )


def number(low: float, high: float) -> Check:
    return expecting(
        f"a number from {low:g} to {high:g}", lambda value: is_number(value) and low <= value <= high
    )
