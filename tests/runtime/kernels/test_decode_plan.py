"""The plan of a step's decode attention: each page once, shared evenly, and parts counted as the programs make them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from paged_attention import DEVICE, int32

from jitney.runtime.kernels.decode_plan import DecodePlan
from jitney.runtime.kernels.workspace import spread

PAGE, KV_HEADS, IDLE = 16, 2, 7
Visit = tuple[int, int, int, int, int]


@pytest.mark.parametrize(
    ("rows", "head_dim", "item_bytes", "is_early"),
    [
        (16, 128, 2, True),
        (17, 128, 2, False),
        (16, 128, 1, True),
        (17, 128, 1, False),
        (64, 64, 2, True),
        (65, 64, 2, False),
    ],
)
def test_many_rows_begin_early_where_heads_are_narrow(
    rows: int, head_dim: int, item_bytes: int, is_early: bool
) -> None:
    assert spread(rows, head_dim, item_bytes).early is is_early


def visits(
    lengths: list[int], slots: list[int], programs: int, window: int | None
) -> tuple[list[list[int]], list[Visit]]:
    """The pages of every program as (row, head, page), and for each visited stretch the parts that it is said to
    have, walked as the kernel walks them."""
    plan = DecodePlan(KV_HEADS, PAGE, programs, window, torch.device(DEVICE))
    plan.fill(int32(slots), int32(lengths), IDLE, programs)
    first_page = [max(0, length + 1 - window) // PAGE if window else 0 for length in lengths]
    walked = []
    for program, words in enumerate(plan.words.tolist()):
        units, row, head, slot, position, page, first, parts, last_parts = words[:9]
        if units:
            assert (slot, position) == (slots[row], lengths[row])
        while units:
            end = min(page + units, lengths[row] // PAGE + 1)
            walked += [(program, row, head, at, first * 1000 + parts) for at in range(page, end)]
            units -= end - page
            if units:
                head += 1
                if head == KV_HEADS:
                    head, row = 0, row + 1
                    while slots[row] == IDLE:
                        row += 1
                page, first = first_page[row], program
                parts = last_parts if page + units <= lengths[row] // PAGE + 1 else 1
    return [list(visit[1:4]) for visit in walked], walked


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("programs", [1, 3, 9, 60])
def test_each_page_once(programs: int, window: int | None) -> None:
    rng = random.Random(programs)
    for _ in range(2):
        slots = [rng.choice([0, 1, 2, 3, IDLE]) for _ in range(rng.randint(1, 12))]
        lengths = [rng.choice([0, 5, 15, 16, 17, 200, rng.randrange(900)]) for _ in slots]
        pages, walked = visits(lengths, slots, programs, window)
        expected = [
            [row, head, page]
            for row, (slot, length) in enumerate(zip(slots, lengths, strict=True))
            if slot != IDLE
            for head in range(KV_HEADS)
            for page in range(max(0, length + 1 - window) // PAGE if window else 0, length // PAGE + 1)
        ]
        assert pages == expected
        visitors: dict[tuple[int, int], set[int]] = {}
        for program, row, head, _, _ in walked:
            visitors.setdefault((row, head), set()).add(program)
        for _, row, head, _, said in walked:
            programs_of = visitors[row, head]
            assert said == min(programs_of) * 1000 + len(programs_of)


def test_a_long_row_is_shared_by_many() -> None:
    _, walked = visits([15] * 11 + [1000], [0] * 12, 8, None)
    loads = Counter(program for program, *_ in walked)
    assert len(loads) == 8 and max(loads.values()) <= 22


@pytest.mark.parametrize("slots", [[0] * 32, [0] * 20 + [IDLE] * 3 + [0] * 12, [IDLE] + [0] * 64 + [IDLE]])
@pytest.mark.parametrize("spare", [0, 1])
def test_rows_of_one_length_are_not_shared(slots: list[int], spare: int) -> None:
    stretches = KV_HEADS * sum(slot != IDLE for slot in slots)
    lengths = [300 + 9 * (row % 2) for row, _ in enumerate(slots)]
    for programs in (stretches + spare, stretches // 2 + spare):
        pages, walked = visits(lengths, slots, programs, None)
        assert len(pages) == sum(
            KV_HEADS * (length // PAGE + 1)
            for length, slot in zip(lengths, slots, strict=True)
            if slot != IDLE
        )
        assert all(said == program * 1000 + 1 for program, *_, said in walked)


def test_rows_that_would_keep_few_programs_busy_are_shared() -> None:
    _, walked = visits([300] * 24, [0] * 24, 66, None)
    assert len({program for program, *_ in walked}) == 66
