"""The launches of sampling, over buffers that are made once: what a captured graph replays.

A scan of all logits; where rows may be cut, a shortlist for each and passes of a search for those whose list would be
too long; last, one program a row that settles the token. What a row needs is read on the device, by slot: a row
without cuts costs the cuts' launches nothing but their start.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .scan import scan_kernel
from .scores import Scorer
from .search import search_kernel
from .sequences import ban_kernel
from .settle import settle_kernel
from .shortlist import COMPARED, shortlist_kernel
from .workspace import PASSES, SCAN_BLOCK, SCAN_PART, SHORTLISTED, allocated, for_sampling

_PROGRAMS, _SEARCH_PROGRAMS = 1024, 512
_SCAN_WARPS, _SHORTLIST_WARPS, _SEARCH_WARPS, _SETTLE_WARPS = 4, 16, 4, 8


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
        block: int = SCAN_BLOCK, part: int = SCAN_PART, listed: int = SHORTLISTED, compared: int = COMPARED,
        programs: int = _PROGRAMS,
    ) -> None:  # fmt: skip
        self._state, self._vocab, self._block, self._programs = state, vocab, block, programs
        self._coarse = dtype == torch.bfloat16
        self._num_blocks: int = triton.cdiv(vocab, block)
        self._parts, self._listed, self._compared = block // part, listed, compared
        buffers = allocated(for_sampling(rows, vocab, block, part, listed), device)
        self._peaks, self._sums, self._part_peaks, self._part_sums, self._active = (
            buffers[name] for name in ("peaks", "sums", "part_peaks", "part_sums", "active")
        )
        self._values, self._ids, self._searches, self._measures, self._tokens, self._flags = (
            buffers[name] for name in ("values", "ids", "searches", "measures", "tokens", "flags")
        )
        self.scorer = Scorer(state.words, state.named, rows, vocab, block, part, programs, device)

    def sample(
        self, logits: Tensor, slots: Tensor, positions: Tensor, *, full: bool, cuts: bool = True
    ) -> tuple[Tensor, Tensor]:
        """One token for each row: tokens and flags [R] int32, at fixed addresses, valid until the next call.

        logits [R, vocab] contiguous; slots [R] int32; positions [R] int32: tokens before the one to draw. Flags as in
        `row_words`. `full`: some row may have adjustments or log-probabilities, and the scorer's buffers hold these
        afterwards; `cuts`: some may have top_k, top_p or min_p. Enqueues a fixed sequence of launches; allocates
        nothing and waits for nothing.
        """
        rows, blocks, vocab = logits.size(0), self._num_blocks, self._vocab
        words, marks, biases, history, ends, ids = self._state[:6]
        row_inputs = (logits, slots, positions, words, marks, biases)
        scanned = (self._peaks, self._sums)
        parts = (self._part_peaks, self._part_sums)
        tokens, flags = self._tokens[:rows], self._flags[:rows]
        kind = {"ADJUST": full, "BLOCK": self._block}
        by_row = {**kind, "COARSE": self._coarse, "BLOCKS": triton.next_power_of_2(blocks)}
        if full:
            ban_kernel[(rows,)](slots, positions, words, marks, history, ends, ids, vocab, BLOCK=128)
        scan_kernel[(rows, self._share(self._programs, rows))](
            *row_inputs, *scanned, *parts, vocab, blocks, **kind, PARTS=self._parts, num_warps=_SCAN_WARPS
        )
        if cuts:
            shortlist_kernel[(rows,)](
                *row_inputs, *scanned, *parts, self._active, self._values, self._ids, self._searches, tokens,
                vocab, blocks, **by_row, PARTS=self._parts, ALL_PARTS=triton.next_power_of_2(blocks * self._parts),
                MOST=self._listed, COMPARED=self._compared, CHUNK=2 * self._block, num_warps=_SHORTLIST_WARPS,
            )  # fmt: skip
            for number in range(1, PASSES + 1):
                search_kernel[(rows, self._share(_SEARCH_PROGRAMS, rows))](
                    *row_inputs, self._peaks, self._searches, self._measures, vocab, blocks, rows, number,
                    **by_row, num_warps=_SEARCH_WARPS,
                )  # fmt: skip
        settle_kernel[(rows,)](
            *row_inputs, history, *scanned, self._searches, self._measures, tokens, flags,
            vocab, blocks, rows, PASSES, CUTS=cuts, **by_row, num_warps=_SETTLE_WARPS,
        )  # fmt: skip
        if full:
            self.scorer.score(logits, slots, tokens)
        return tokens, flags

    def _share(self, programs: int, rows: int) -> int:
        """How many programs divide a row's blocks."""
        return min(self._num_blocks, max(1, min(programs, self._programs) // rows))
