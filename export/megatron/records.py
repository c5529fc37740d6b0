"""What stands for the objects that a pickle describes: names and records, which are data and nothing more."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any


class Refused(ValueError):
    """The pickle is malformed, or names what is not data."""


class Name:
    """A global that a pickle mentions; nothing is imported."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path


class Record:
    """An object that was not made: the name of its class, the arguments, the state, and what was put into it."""

    __slots__ = ("name", "args", "state", "items")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []

    def fields(self) -> dict[str, Any]:
        """The attributes that its state sets."""
        state = self.state[0] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        return state if isinstance(state, dict) else {}


Builder = Callable[[tuple[Any, ...]], Any]
INERT: Builder = tuple
"""The builder of what stays a `Record`."""


def shown(value: Any) -> str:
    """A value for a message: short, and no deeper than a few levels, whatever a file made of it."""
    return value.name[:80] if isinstance(value, Record) else reprlib.repr(value)[:80]
