"""The tree of errors, and messages that stay short whatever came in."""

from __future__ import annotations

import pytest

from jitney.runtime import errors
from jitney.runtime.errors import InvalidField, JitneyError, RequestError


def test_every_error_is_in_the_tree() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 12 and all(issubclass(kind, JitneyError) for kind in kinds)


def test_an_invalid_field_says_which_what_was_expected_and_what_came() -> None:
    error = InvalidField("top_p", "a number", "x")
    assert error.field == "top_p" and isinstance(error, RequestError)
    assert str(error) == "top_p: expected a number, got 'x' (str)"
    renamed = error.renamed("topP")
    assert renamed.field == "topP" and str(renamed).startswith("topP: expected a number")


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        -(10**5000),
        "x" * 10**7,
        [1] * 10**6,
        {"a": "b" * 10**6},
        [[[[[[10**5000]]]]]],
        Hostile(),
        [10**5000],
    ],
    ids=["huge", "negative", "text", "list", "dict", "nested", "object", "listed"],
)
def test_what_came_is_shown_briefly(value: object) -> None:
    assert len(str(InvalidField("field", "something else", value))) < 200


def test_what_came_shows_surrogates_escaped() -> None:
    str(InvalidField("field", "text", "\ud800")).encode()
