"""How a reader sees a choice's text: what is new, all so far, or only the whole at its end."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .events import Event

Shape = Callable[[Event], list[Event]]


def _as_deltas(past: list[Event]) -> Shape:
    return lambda event: [event]


def _as_cumulative(past: list[Event]) -> Shape:
    """Text, ids and log-probabilities of an event are its choice's whole, the `past` included."""
    wholes: dict[int, list[Event]] = {}

    def shape(event: Event) -> list[Event]:
        if event.kind not in ("delta", "finish"):
            return [event]
        parts = wholes.setdefault(event.index, [])
        parts.append(event)
        whole = msgspec.structs.replace(
            event,
            text="".join(part.text for part in parts),
            token_ids=tuple(token for part in parts for token in part.token_ids),
            logprobs=None
            if event.logprobs is None
            else tuple(e for part in parts for e in part.logprobs or ()),
        )
        wholes[event.index] = [whole]
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
