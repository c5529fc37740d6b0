"""The first and the last launch of a pass, and of changes before it, against their naive twins."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from torch import Tensor

from jitney.runtime.kernels import patch, rows
from jitney.runtime.kernels.rows import RING, Gathered, Slotwise

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="compares in the interpreter"),
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
]
SLOTS, MOST_ROWS, MOST_TOKENS, CHUNKS = 7, 6, 300, 8
IDLE = SLOTS - 1
Chunk = tuple[int, int, int, bool]
"""Slot, start, count, samples."""


def slotwise(decodes: list[int], chunks: list[Chunk], counter: int = 0) -> Slotwise:
    draw = torch.Generator().manual_seed(1)
    positions = torch.randint(0, 900, (SLOTS,), dtype=torch.int32, generator=draw)
    tokens = torch.randint(0, 5000, (SLOTS,), dtype=torch.int32, generator=draw)
    named = torch.full((MOST_ROWS,), IDLE, dtype=torch.int32)
    named[: len(decodes)] = torch.tensor(decodes, dtype=torch.int32)
    prompt = torch.randint(0, 5000, (MOST_TOKENS,), dtype=torch.int32, generator=draw)
    table = torch.zeros((5, CHUNKS), dtype=torch.int32)
    table[0] = table[4] = IDLE
    table[2] = sum(count for _, _, count, _ in chunks)
    offset = 0
    for i, (slot, start, count, samples) in enumerate(chunks):
        table[:, i] = torch.tensor([slot, start, offset, count, slot if samples else IDLE])
        offset += count
    state = positions, tokens, named, prompt, table, torch.tensor([counter], dtype=torch.int32)
    return Slotwise(*state, IDLE)


def buffers() -> Gathered:
    made = rows.gathered(MOST_ROWS + MOST_TOKENS, MOST_ROWS + CHUNKS, torch.device("cpu"))
    for buffer in made:
        buffer.fill_(-9)
    return made


CASES = {
    "decodes": ([3, 0, 5], [], 4, 4, 0),
    "one row": ([2], [], 1, 1, 0),
    "prompts": ([], [(1, 0, 17, True), (4, 64, 1, False), (0, 128, 40, True)], 0, 64, 4),
    "one token": ([], [(1, 5, 1, True)], 0, 16, 4),
    "both": ([5, 2], [(1, 0, 250, False), (3, 7, 30, True)], 6, 6 + 300, 8),
    "full": ([0], [(1, 0, 16, True)], 1, 17, 1),
    "nobody": ([], [], 4, 4 + 64, 8),
}


@pytest.mark.parametrize(
    ("decodes", "chunks", "num_rows", "num_tokens", "num_chunks"), CASES.values(), ids=CASES
)
def test_gather_equals_its_twin(
    decodes: list[int], chunks: list[Chunk], num_rows: int, num_tokens: int, num_chunks: int
) -> None:
    state, twin = slotwise(decodes, chunks), slotwise(decodes, chunks)
    found, expected = buffers(), buffers()
    rows.gather_by_kernel(state, found, num_rows, num_tokens, num_chunks)
    rows.gather_naive(twin, expected, num_rows, num_tokens, num_chunks)
    for name, mine, theirs in zip(Gathered._fields, found, expected, strict=True):
        assert torch.equal(mine, theirs), name
    assert state.counter.item() == 1


@pytest.mark.parametrize("counter", [0, 1, RING, 2**31 - 2, 2**31 - 1, -(2**31)])
def test_publish_equals_its_twin_whatever_the_number_of_passes(counter: int) -> None:
    """The counter of passes is 32 bits: at half a millisecond each they are used up after 25 days."""
    decodes, chunks = [5, 2], [(1, 0, 9, False), (3, 7, 30, True)]
    results: list[list[Tensor]] = []
    for gather, publish in (
        (rows.gather_by_kernel, rows.publish_by_kernel),
        (rows.gather_naive, rows.publish_naive),
    ):
        state, out = slotwise(decodes, chunks, counter), buffers()
        guarded = torch.full((3 * RING, 2, MOST_ROWS + CHUNKS), -1, dtype=torch.int32)
        ring = guarded[RING : 2 * RING]
        gather(state, out, 4, 4 + 64, 4)
        tokens = torch.arange(100, 108, dtype=torch.int32)
        publish(tokens, tokens % 3, out, state, ring, 8)
        results.append([guarded, state.positions, state.last_tokens])
        written = (guarded[:, 0, 0] != -1).nonzero().flatten().tolist()
        assert written == [RING + (counter % RING)]
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


def test_a_patch_is_applied_as_by_its_twin() -> None:
    draw = torch.Generator().manual_seed(3)
    block = torch.zeros((2, 1000), dtype=torch.int32)
    block[0, :700] = torch.randperm(5000, generator=draw)[:700].int()
    block[1] = torch.randint(1, 99, (1000,), dtype=torch.int32, generator=draw)
    mine, theirs = torch.zeros(5000, dtype=torch.int32), torch.zeros(5000, dtype=torch.int32)
    patch.apply_patch_by_kernel(mine, block, 700)
    patch.apply_patch_naive(theirs, block, 700)
    assert torch.equal(mine, theirs)
