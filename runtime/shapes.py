"""How a reader sees a choice's text: what is new, all so far, or only the whole at its end."""

from __future__ import annotations

from collections.abc import Callable

from .events import Event
from .log import joined

Shape = Callable[[Event], list[Event]]


def _as_deltas(past: list[Event]) -> Shape:
    return lambda event: [event]


def _as_cumulative(past: list[Event]) -> Shape:
    """Text, ids and log-probabilities of an event are its choice's whole, the `past` included."""
    wholes: dict[int, Event] = {}

    def shape(event: Event) -> list[Event]:
        if event.kind not in ("delta", "finish"):
            return [event]
        before = wholes.get(event.index)
        whole = wholes[event.index] = event if before is None else joined([before, event])
        return [whole]

    for event in past:
        shape(event)
    return shape


def _as_final(past: list[Event]) -> Shape:
    """Cumulative, with the deltas left out."""
    cumulative = _as_cumulative(past)
    return lambda event: [whole for whole in cumulative(event) if event.kind != "delta"]


SHAPES: dict[str, Callable[[list[Event]], Shape]] = {
    "delta": _as_deltas,
    "cumulative": _as_cumulative,
    "final": _as_final,
}
