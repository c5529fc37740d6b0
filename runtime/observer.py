"""Who hears of every response: what counts, limits and bills is told here, and cannot slow or break an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .response import Response


class Observer(Protocol):
    """Called on the engine's loop, in the middle of its work: each call must return at once and must not raise."""

    def advanced(self, response: Response, num_tokens: int) -> None:
        """A report of the worker brought tokens of this response."""
        ...

    def ended(self, response: Response) -> None:
        """The response was sealed: exactly once for each that was admitted, from within `submit` if its deadline
        passed while it was being tokenised."""
        ...
