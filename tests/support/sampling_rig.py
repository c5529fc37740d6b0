"""Slots seated by hand, and the sampler's launches on them: on a card, or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jitney.runtime.batch import Seat
from jitney.runtime.cuda.arena import Arena, Patch
from jitney.runtime.cuda.sampling_state import SamplingState
from jitney.runtime.cuda.staging import Staging
from jitney.runtime.kernels.sampling import SamplingLaunches
from jitney.runtime.steps.sampler import Row

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Rig:
    """Slot i holds row i; the slot after the last is idle."""

    def __init__(
        self,
        rows: Sequence[Row],
        vocab: int,
        dtype: torch.dtype,
        *,
        block: int = 64,
        programs: int = 1,
        listed: int = 128,
        part: int = 16,
        compared: int = 16,
    ) -> None:
        arena = Arena()
        self.state = SamplingState(arena, len(rows) + 1, vocab)
        arena.allocate(DEVICE)
        self._arena, self._staging = arena, Staging(arena, 2, 1 << 16)
        self.idle = len(rows)
        self.launches = SamplingLaunches(
            self.state.rows,
            len(rows) + 1,
            vocab,
            dtype,
            DEVICE,
            block=block,
            part=part,
            compared=compared,
            listed=listed,
            programs=programs,
        )
        for slot, row in enumerate(rows):
            self.seat(slot, row)

    def seat(self, slot: int, row: Row) -> None:
        patch = Patch(self._arena)
        self.state.seat(patch, Seat(slot, tuple(row.tokens), row.prompt_len, 1 << 20, 0, (), row.sampling))
        self._staging.apply(patch)

    def sample(
        self,
        logits: Tensor,
        slots: Sequence[int],
        positions: Sequence[int],
        *,
        full: bool = True,
        cuts: bool = True,
    ) -> tuple[list[int], list[int]]:
        """Tokens and flags."""

        def ints(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=DEVICE)

        tokens, flags = self.launches.sample(
            logits.to(DEVICE), ints(slots), ints(positions), full=full, cuts=cuts
        )
        return tokens.tolist(), flags.tolist()


def sampled(
    logits: Tensor,
    rows: Sequence[Row],
    *,
    full: bool = True,
    cuts: bool = True,
    block: int = 64,
    programs: int = 1,
    listed: int = 128,
) -> tuple[list[int], list[int]]:
    """Tokens and flags of fresh rows; logits [rows, vocab]."""
    rig = Rig(rows, logits.size(1), logits.dtype, block=block, programs=programs, listed=listed)
    positions = [len(row.tokens) for row in rows]
    return rig.sample(logits, range(len(rows)), positions, full=full, cuts=cuts)
