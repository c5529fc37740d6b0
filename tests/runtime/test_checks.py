"""Checks of what users set."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from jitney.runtime.checks import check_fields, integer
from jitney.runtime.errors import InvalidField


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    rows: Annotated[int, integer(1, 8)]
    pages: Annotated[int | None, integer(1, 8)] = None
    eager: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


class Careless(msgspec.Struct):
    rows: Annotated[int, integer(1, 8)] = 9


def test_what_was_given_is_checked() -> None:
    assert Wish(rows=1, pages=8, eager=True) and Wish(rows=8, pages=None)
    for fields, name in (
        ({"rows": 0}, "rows"),
        ({"rows": 1, "pages": True}, "pages"),
        ({"rows": 1, "eager": 0}, "eager"),
    ):
        with pytest.raises(InvalidField) as caught:
            Wish(**fields)  # type: ignore[arg-type]
        assert caught.value.field == name


def test_a_default_is_checked_before_it_counts_as_right() -> None:
    with pytest.raises(InvalidField, match="rows"):
        check_fields(Careless(rows=2))
