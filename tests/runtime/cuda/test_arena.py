"""Regions of one tensor, and patches that change them: compared with writing the same values one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from jitney.runtime.cuda.arena import Arena, Patch
from jitney.runtime.cuda.sizes import REGION_WORDS

CPU = torch.device("cpu")


@pytest.fixture
def arena() -> Arena:
    made = Arena()
    made.region("tables", 5, 7)
    made.region("scales", 3, dtype=torch.float32)
    made.region("counter", 1)
    made.allocate(CPU)
    return made


def applied(arena: Arena, patch: Patch, most: int) -> int:
    """Number of pieces."""
    pieces = list(patch.pieces(most))
    for offsets, values in pieces:
        assert len(offsets) <= most
        arena.words.numpy()[offsets] = values
    return len(pieces)


def test_regions_begin_at_multiples_and_do_not_overlap(arena: Arena) -> None:
    starts = [arena.start(name) for name in ("tables", "scales", "counter")]
    assert starts == [0, REGION_WORDS, 2 * REGION_WORDS]
    assert arena.num_words == arena.words.numel() == 3 * REGION_WORDS
    assert arena.tensor("tables").shape == (5, 7) and arena.tensor("scales").dtype == torch.float32
    assert arena.stride("tables") == 7 and arena.stride("counter") == 1


def test_a_view_shares_the_arena(arena: Arena) -> None:
    arena.tensor("tables")[2, 3] = 9
    assert arena.words[2 * 7 + 3] == 9


@pytest.mark.parametrize("most", [1, 2, 5, 1000])
def test_a_patch_writes_what_single_writes_would(arena: Arena, most: int) -> None:
    draw = random.Random(most)
    expected = torch.zeros(5, 7, dtype=torch.int32)
    patch = Patch(arena)
    for entry in range(5):
        at, count = draw.randrange(7), draw.randrange(4)
        values = [draw.randrange(-100, 100) for _ in range(min(count, 7 - at))]
        patch.write("tables", entry, values, at=at)
        expected[entry, at : at + len(values)] = torch.tensor(values, dtype=torch.int32)
    patch.write("scales", 1, 0.25)
    patch.scatter("counter", 0, [0], [3])
    num_words = patch.num_words
    assert applied(arena, patch, most) == -(-num_words // most)
    assert arena.tensor("tables").equal(expected)
    assert arena.tensor("scales").tolist() == [0.0, 0.25, 0.0] and arena.tensor("counter").item() == 3


def test_scattered_places(arena: Arena) -> None:
    patch = Patch(arena)
    patch.scatter("tables", 4, [6, 0, 3], np.array([1, 2, 3]))
    applied(arena, patch, 100)
    assert arena.tensor("tables")[4].tolist() == [2, 0, 0, 3, 0, 0, 1]


def test_an_empty_patch_is_nothing(arena: Arena) -> None:
    patch = Patch(arena)
    patch.write("tables", 0, [])
    assert list(patch.pieces(10)) == []


def test_a_write_past_its_entry_is_our_own_fault(arena: Arena) -> None:
    with pytest.raises(AssertionError, match="tables"):
        Patch(arena).write("tables", 0, [1, 2, 3], at=5)
