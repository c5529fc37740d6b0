"""What the host tells the device of slots and of the next pass, read back from the arena."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from jitney.runtime.batch import Chunk, RowSampling, Seat
from jitney.runtime.cuda.arena import Arena, Patch
from jitney.runtime.cuda.sizes import CHUNK_ROWS, Sizes
from jitney.runtime.cuda.state import SlotState

SIZES = Sizes(context=512, max_rows=6, prefill_tokens=128, num_pages=50)
IDLE = 6


class Rig:
    def __init__(self) -> None:
        self.arena = Arena()
        self.state = SlotState(self.arena, SIZES)
        self.arena.allocate(torch.device("cpu"))
        self.patch = Patch(self.arena)

    def apply(self) -> int:
        """Words that were written."""
        for offsets, values in self.patch.pieces(1 << 20):
            self.arena.words.numpy()[offsets] = values
        count, self.patch = self.patch.num_words, Patch(self.arena)
        return count


@pytest.fixture
def rig() -> Rig:
    return Rig()


def seat(slot: int, pages: tuple[int, ...]) -> Seat:
    return Seat(slot, (1, 2, 3), 3, 500, 0, pages, RowSampling(seed=0))


def test_a_seat_fills_its_table_and_growth_appends(rig: Rig) -> None:
    rig.state.seat(rig.patch, seat(2, (4, 9)))
    rig.state.grow(rig.patch, 2, (7,))
    rig.state.grow(rig.patch, 2, (1, 3))
    rig.apply()
    assert rig.state.tables[2].tolist() == [4, 9, 7, 1, 3, 0, 0, 0]
    assert not rig.state.tables[[0, 1, 3, 4, 5, 6]].any()


def test_a_slot_that_is_seated_again_keeps_no_page_of_its_former_occupant(rig: Rig) -> None:
    rig.state.seat(rig.patch, seat(1, (4, 9, 8, 7)))
    rig.apply()
    rig.state.seat(rig.patch, seat(1, (5,)))
    rig.apply()
    assert rig.state.tables[1].tolist() == [5, 0, 0, 0, 0, 0, 0, 0]
    rig.state.grow(rig.patch, 1, (6,))
    rig.apply()
    assert rig.state.tables[1, :3].tolist() == [5, 6, 0]


def test_rows_that_stay_cost_nothing(rig: Rig) -> None:
    rig.state.decode(rig.patch, (3, 1), 4)
    assert rig.apply() == 4
    assert rig.state.rows[0, :4].tolist() == [3, 1, IDLE, IDLE]
    rig.state.decode(rig.patch, (3, 1), 4)
    rig.state.decode(rig.patch, (3, 1), 2)
    assert rig.apply() == 0
    rig.state.decode(rig.patch, (3, 1), 6)
    assert rig.apply() == 6
    rig.state.decode(rig.patch, (1, 3), 2)
    rig.apply()
    assert rig.state.rows[0, :2].tolist() == [1, 3]


def test_chunks_lie_one_after_the_other_and_the_rest_is_empty(rig: Rig) -> None:
    chunks = [Chunk(4, 10, 3, True), Chunk(0, 0, 2, False)]
    rig.state.prefill(rig.patch, chunks, [(11, 12, 13), (21, 22)])
    rig.apply()
    slots, starts, offsets, counts, sampled = rig.state.chunks.tolist()
    rest = CHUNK_ROWS - 2
    assert slots == [4, 0] + [IDLE] * rest and sampled == [4, IDLE] + [IDLE] * rest
    assert starts[:2] == [10, 0] and offsets == [0, 3] + [5] * rest and counts == [3, 2] + [0] * rest
    assert rig.state.prompt[0, :5].tolist() == [11, 12, 13, 21, 22]


def test_at_rest_a_pass_touches_the_idle_slot_alone(rig: Rig) -> None:
    rig.state.decode(rig.patch, (3, 1), 2)
    rig.state.prefill(rig.patch, [Chunk(2, 0, 2, True)], [(5, 6)])
    rig.apply()
    rig.state.rest(rig.patch)
    rig.apply()
    slots, _, _, counts, sampled = rig.state.chunks.tolist()
    assert set(slots) == set(sampled) == set(rig.state.rows[0].tolist()) == {IDLE} and not any(counts)
    rig.state.decode(rig.patch, (3, 1), 2)
    assert rig.apply() == 2
