"""The launches of sampling, over buffers that are made once: what a captured graph replays.

A scan of all logits, passes of the search where rows may be cut, and one program a row that settles the token. What
rows need is read on the device, by slot: a row without cuts costs a search nothing but the launches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .scan import scan_kernel
from .scores import Scorer
from .search import NUM_PIVOTS, NUM_STATE, search_kernel
from .sequences import ban_kernel
from .settle import settle_kernel

BLOCK = 2048
COARSE_PASSES, FINE_PASSES = 4, 6
_PROGRAMS = 1024
_SCAN_WARPS, _SEARCH_WARPS, _SETTLE_WARPS = 4, 8, 8


class RowState(NamedTuple):
    """By slot, int32 but for the biases, float32: words [slots, NUM_WORDS], marks [slots, vocab], biases
    [slots, MOST_BIASES], history [slots, HISTORY], bad sequences' ends [slots, MOST_SEQUENCES] and ids
    [slots, MOST_IDS], named ids [slots, MOST_NAMED]."""

    words: Tensor
    marks: Tensor
    biases: Tensor
    history: Tensor
    sequence_ends: Tensor
    sequence_ids: Tensor
    named: Tensor


class SamplingLaunches:
    """`rows`: the most of one call. `dtype`: of the logits, bfloat16 or float32. `programs`: how many share a launch's
    blocks; neither this nor the number of rows changes a token."""

    def __init__(
        self, state: RowState, rows: int, vocab: int, dtype: torch.dtype, device: torch.device, *,
        block: int = BLOCK, programs: int = _PROGRAMS,
    ) -> None:  # fmt: skip
        self._state, self._vocab, self._block, self._programs = state, vocab, block, programs
        self._coarse = dtype == torch.bfloat16
        self._num_blocks = triton.cdiv(vocab, block)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._peaks, self._sums = buffer(rows, self._num_blocks), buffer(rows, self._num_blocks)
        self._searches = buffer(FINE_PASSES, rows, NUM_STATE, dtype=torch.int64)
        self._measures = buffer(2, rows, self._num_blocks, 2, NUM_PIVOTS)
        self.scorer = Scorer(state.words, state.named, rows, vocab, block, programs, device)
        self._tokens, self._flags = buffer(rows, dtype=torch.int32), buffer(rows, dtype=torch.int32)

    def sample(
        self, logits: Tensor, slots: Tensor, positions: Tensor, *, full: bool, cuts: bool = True
    ) -> tuple[Tensor, Tensor]:
        """One token for each row: tokens and flags [R] int32, at fixed addresses, valid until the next call.

        logits [R, vocab] contiguous; slots [R] int32; positions [R] int32: tokens before the one to draw. Flags as in
        `row_words`. `full`: some row may have adjustments or log-probabilities, and the scorer's buffers hold these
        afterwards; `cuts`: some may have top_k, top_p or min_p. Enqueues a fixed sequence of launches; allocates
        nothing and waits for nothing.
        """
        rows, blocks = logits.size(0), self._num_blocks
        words, marks, biases, history, ends, ids = self._state[:6]
        shape = {"ADJUST": full, "BLOCK": self._block}
        shared = (logits, slots, positions, words, marks, biases)
        grid = (rows, min(blocks, max(1, self._programs // rows)))
        if full:
            ban_kernel[(rows,)](slots, positions, words, marks, history, ends, ids, self._vocab, BLOCK=128)
        scan_kernel[grid](*shared, self._peaks, self._sums, self._vocab, blocks, **shape, num_warps=_SCAN_WARPS)
        search = {**shape, "COARSE": self._coarse, "BLOCKS": triton.next_power_of_2(blocks)}
        passes = FINE_PASSES if full or not self._coarse else COARSE_PASSES
        for number in range(passes if cuts else 0):
            search_kernel[grid](
                *shared, self._peaks, self._sums, self._searches, self._measures, self._vocab, blocks, rows, number,
                FIRST=number == 0, **search, num_warps=_SEARCH_WARPS,
            )  # fmt: skip
        tokens, flags = self._tokens[:rows], self._flags[:rows]
        settle_kernel[(rows,)](
            *shared, history, self._peaks, self._sums, self._searches, self._measures, tokens, flags,
            self._vocab, blocks, rows, passes, CUTS=cuts, **search, num_warps=_SETTLE_WARPS,
        )  # fmt: skip
        if full:
            self.scorer.score(logits, slots, tokens)
        return tokens, flags
