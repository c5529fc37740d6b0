"""What steps and schedulers say of many rows at once, said of each."""

from __future__ import annotations

from collections.abc import Iterable

from jitney.runtime.batch import Outcomes, RowOutcome
from jitney.runtime.messages import Advance, Output


def by_slot(outcomes: Outcomes) -> dict[int, RowOutcome]:
    told: dict[int, RowOutcome] = {}
    for outcome in outcomes:
        if isinstance(outcome, RowOutcome):
            told[outcome.slot] = outcome
            continue
        for slot, token in zip(outcome.slots, outcome.tokens, strict=True):
            told.setdefault(slot, RowOutcome(slot, (token,)))
    return told


def spelled(outputs: Iterable[Output | Advance]) -> list[Output]:
    told: list[Output] = []
    for output in outputs:
        if isinstance(output, Output):
            told.append(output)
        else:
            told += [Output(*name, tokens) for name, tokens in zip(output.names, output.tokens, strict=True)]
    return told
