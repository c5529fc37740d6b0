"""Who hears of every response: what counts, limits and bills is told here, and cannot slow or break an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .response import Response

Gain = tuple["Response", int, float | None]
"""Tokens that came at once for one choice: their number, and how long before some had last come; None: the first."""


class Observer(Protocol):
    """Called on the engine's loop, in the middle of its work: each call must return at once and must not raise."""

    def advanced(self, gains: Sequence[Gain]) -> None:
        """The worker's news brought tokens. What a response gained is told before its end."""
        ...

    def ended(self, response: Response) -> None:
        """The response was sealed: exactly once for each that was admitted, from within `submit` if its deadline
        passed while it was being tokenised."""
        ...
