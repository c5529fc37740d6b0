"""The scripted step refuses what a real one could not survive, and its KV cache tells on wrong pages."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from jitney.runtime.batch import Batch, Capacity, Chunk, RowSampling, Seat
from jitney.runtime.testing import RowView, ScriptedStep, chain

EMPTY = Batch(1, (), (), (), ())


def seat(slot: int = 0, start: int = 0, pages: tuple[int, ...] = (1, 2), **sampling: Any) -> Seat:
    return Seat(slot, (1, 2, 3, 4, 5), 5, 8, start, pages, RowSampling(seed=0, **sampling))


def batch(**fields: Any) -> Batch:
    return msgspec.structs.replace(EMPTY, **fields)


@dataclasses.dataclass
class Made:
    """A step that gives the hash of what its cache holds."""

    def __post_init__(self) -> None:
        self.states: list[int] = []
        self.step = ScriptedStep(Capacity(6, 4, 2), self.next_token)

    def next_token(self, row: RowView) -> int:
        self.states.append(row.state)
        return 7

    def run(self, **fields: Any) -> list[Any]:
        return self.step.collect(self.step.launch(batch(**fields)))


def hashed(*tokens: int) -> int:
    state = 0
    for token in tokens:
        state = chain(state, token)
    return state


def test_a_prompt_and_its_decodes_see_the_hash_of_all_before() -> None:
    made = Made()
    (outcome,) = made.run(seats=(seat(),), chunks=(Chunk(0, 0, 5, True),))
    assert outcome.tokens == (7,)
    made.run(decodes=(0,))
    assert made.states == [hashed(1, 2, 3, 4, 5), hashed(1, 2, 3, 4, 5, 7)]


def test_chunks_and_whole_prompts_see_the_same() -> None:
    made = Made()
    (outcome,) = made.run(seats=(seat(),), chunks=(Chunk(0, 0, 3, False),))
    assert outcome.tokens == ()
    made.run(chunks=(Chunk(0, 3, 2, True),))
    assert made.states == [hashed(1, 2, 3, 4, 5)]


def test_a_page_that_somebody_else_wrote_shows() -> None:
    made = Made()
    made.run(seats=(seat(),), chunks=(Chunk(0, 0, 5, True),))
    made.run(seats=(seat(1, start=4, pages=(3, 4)),), chunks=(Chunk(1, 4, 1, True),))
    made.run(seats=(seat(1, start=4, pages=(1, 4)),), chunks=(Chunk(1, 4, 1, True),))
    assert made.states[1] != made.states[0] == made.states[2]


@pytest.mark.parametrize(
    "fields",
    [
        {"seats": (seat(),), "chunks": (Chunk(0, 2, 3, True),)},
        {"seats": (seat(),), "chunks": (Chunk(0, 0, 6, True),)},
        {"seats": (seat(pages=(1,)),), "chunks": (Chunk(0, 0, 5, True),)},
        {"seats": (seat(pages=(0, 1)),), "chunks": (Chunk(0, 0, 5, True),)},
        {"seats": (seat(pages=(6, 1)),), "chunks": (Chunk(0, 0, 5, True),)},
        {"seats": (seat(),), "chunks": (Chunk(0, 0, 5, True),), "decodes": (0,)},
    ],
)
def test_a_plan_that_cannot_be_is_refused(fields: Any) -> None:
    with pytest.raises(AssertionError):
        Made().run(**fields)


def test_nothing_is_launched_after_the_close() -> None:
    made = Made()
    made.step.close()
    with pytest.raises(AssertionError):
        made.run()


def test_scores_where_they_are_asked_for() -> None:
    made = Made()
    (outcome,) = made.run(
        seats=(seat(logprobs=2, logprob_token_ids=(9,), prompt_logprobs=0),), chunks=(Chunk(0, 0, 5, True),)
    )
    assert [s and s.token_id for s in outcome.prompt_logprobs] == [None, 2, 3, 4, 5]
    (entry,) = outcome.logprobs
    assert entry.token_id == 7 and len(entry.top) == 3 and entry.top[-1][0] == 9
