"""Who hears of every response: what counts, limits and bills is told here, and cannot slow or break an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from .response import Response


class Gain(NamedTuple):
    """What a response gained since it was last told of: tokens, and the gaps in seconds between deliveries to its first
    choice. `is_first`: it was not told of before."""

    response: Response
    num_tokens: int
    gaps: Sequence[float]
    is_first: bool


class Observer(Protocol):
    """Called on the engine's loop, in the middle of its work: each call must return at once and must not raise."""

    def advanced(self, gains: Sequence[Gain]) -> None:
        """The worker's news brought tokens, some moments ago at most. What a response gained is told before its end."""
        ...

    def ended(self, response: Response) -> None:
        """The response was sealed: exactly once for each that was admitted, from within `submit` if its deadline
        passed while it was being tokenised."""
        ...
