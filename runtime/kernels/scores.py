"""Log-probabilities of the model's own distribution: of a token, of the k likeliest, and of ids asked for by name.

A scan of the rows that ask gives each block's peak and sum and each part's peak; then one program a row lists the
logits that may be among the k highest and orders them. Logits are read as they are: before bans, bias and penalties.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .listing import bound_by_count, listed, lowest_peak, ranked
from .marks import load
from .row_words import NUM_NAMED, NUM_TOP, PROMPT_TOP, row_word
from .search import LARGEST
from .workspace import MOST_NAMED, MOST_TOP, SCORED, allocated, for_scores

_MOST_TOP = tl.constexpr(MOST_TOP)
_MOST_NAMED = tl.constexpr(MOST_NAMED)
_LISTED = tl.constexpr(SCORED)
_NAMED_AT_ONCE = tl.constexpr(128)


class Scores(NamedTuple):
    """Of R rows, natural logarithms. own [R] float32: of the row's token; ids [R, MOST_TOP] int32 and top [R, MOST_TOP]
    float32: of the likeliest, by falling value, then rising id; named [R, MOST_NAMED] float32, in the order asked."""

    own: Tensor
    ids: Tensor
    top: Tensor
    named: Tensor


@triton.jit(do_not_specialize=["field"])
def _scan(
    logits, slots, words, peaks, sums, part_peaks, vocab, num_blocks, field,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if row_word(words, tl.load(slots + row), field) > 0:
        part = tl.arange(0, PARTS)
        for block in range(tl.program_id(1), num_blocks, tl.num_programs(1)):
            ids = block * BLOCK + tl.arange(0, BLOCK)
            values = load(logits + row * vocab, ids, ids < vocab)
            at = row * num_blocks + block
            part_peak = tl.max(tl.reshape(values, [PARTS, BLOCK // PARTS]), axis=1)
            peak = tl.max(part_peak, axis=0)
            tl.store(part_peaks + at * PARTS + part, part_peak)
            tl.store(peaks + at, peak)
            tl.store(sums + at, tl.sum(tl.exp(values - tl.maximum(peak, -LARGEST)), axis=0))


@triton.jit(do_not_specialize=["field"])
def _rows(
    logits, slots, tokens, words, named, peaks, sums, part_peaks, active, values, ids,
    own, top_ids, top, named_scores, vocab, num_blocks, field,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PARTS: tl.constexpr, ALL_PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    num_top = row_word(words, slot, field) - 1
    if num_top >= 0:
        at = tl.arange(0, BLOCKS)
        peak_of = tl.load(peaks + row * num_blocks + at, mask=at < num_blocks, other=float("-inf"))
        sum_of = tl.load(sums + row * num_blocks + at, mask=at < num_blocks, other=0.0)
        peak = tl.max(peak_of, axis=0)
        total = peak + tl.log(tl.sum(sum_of * tl.exp(tl.maximum(peak_of, -LARGEST) - peak), axis=0))
        logits += row * vocab
        tl.store(own + row, tl.load(logits + tl.load(tokens + row)).to(tl.float32) - total)
        if num_top > 0:
            j = tl.arange(0, ALL_PARTS)
            is_part = j < num_blocks * PARTS
            part_peak = tl.load(part_peaks + row * num_blocks * PARTS + j, mask=is_part, other=float("-inf"))
            lowest = lowest_peak(part_peak)
            enough = tl.sum(tl.where(part_peak >= lowest, 1, 0), axis=0) >= num_top
            least = bound_by_count(part_peak, tl.where(enough, lowest, -LARGEST), peak, num_top)
            values += row * _LISTED
            ids += row * _LISTED
            num = listed(
                logits, words, slot, 0, words, words, 0, vocab, least, part_peak, active + row * num_blocks * PARTS,
                values, ids, False, BLOCK // PARTS, ALL_PARTS, _LISTED, CHUNK,
            )  # fmt: skip
            if num <= _LISTED:
                here, rank, _ = ranked(values, num, peak, 1.0, _LISTED)
                i = tl.arange(0, _LISTED)
                is_top = (i < num) & (rank < num_top)
                tl.store(top + row * _MOST_TOP + rank, here - total, mask=is_top)
                tl.store(
                    top_ids + row * _MOST_TOP + rank, tl.load(ids + i, mask=i < num, other=0), mask=is_top
                )
            else:
                _one_by_one(
                    logits, total, top_ids + row * _MOST_TOP, top + row * _MOST_TOP, num_top, vocab, BLOCK
                )
        if field == NUM_TOP:
            num_named = row_word(words, slot, NUM_NAMED)
            for start in range(0, num_named, _NAMED_AT_ONCE):
                place = start + tl.arange(0, _NAMED_AT_ONCE)
                wanted = tl.load(named + slot * _MOST_NAMED + place, mask=place < num_named, other=0)
                score = load(logits, wanted, place < num_named) - total
                tl.store(named_scores + row * _MOST_NAMED + place, score, mask=place < num_named)


@triton.jit
def _one_by_one(logits, total, top_ids, top, num_top, vocab, BLOCK: tl.constexpr):
    """The likeliest where too many are equal to be listed: one reading of the row for each."""
    last, last_id = float("inf"), -1
    for i in range(num_top):
        best, best_id = float("-inf"), vocab
        for start in range(0, vocab, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            values = load(logits, ids, ids < vocab)
            later = (values < last) | ((values == last) & (ids > last_id))
            values = tl.where(later, values, float("-inf"))
            peak = tl.max(values, axis=0)
            at = tl.min(tl.where(later & (values == peak) & (ids < vocab), ids, vocab), axis=0)
            better = (peak > best) | ((peak == best) & (at < best_id))
            best, best_id = tl.where(better, peak, best), tl.where(better, at, best_id)
        tl.store(top + i, best - total)
        tl.store(top_ids + i, best_id)
        last, last_id = best, best_id


class Scorer:
    """`rows`: the most of one call."""

    def __init__(
        self, words: Tensor, named: Tensor, rows: int, vocab: int, block: int, part: int, programs: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._words, self._named, self._vocab = words, named, vocab
        self._block, self._parts, self._programs = block, block // part, programs
        self._num_blocks: int = triton.cdiv(vocab, block)
        peaks, sums, part_peaks, active, values, listed, *scores = allocated(
            for_scores(rows, vocab, block, part), device
        ).values()
        self._scanned = peaks, sums, part_peaks
        self._scratch = active, values, listed
        self.scores = Scores(*scores)

    def score(self, logits: Tensor, slots: Tensor, tokens: Tensor, *, prompt: bool = False) -> Scores:
        """Of each row's token [R] int32 and of what its slot asks for by `logprobs`, or, of a `prompt`, by
        `prompt_logprobs`. logits [R, vocab] contiguous, slots [R] int32. Rows that ask for nothing are left as they
        were. Results at fixed addresses, valid until the next call; nothing is allocated or waited for."""
        rows, blocks = logits.size(0), self._num_blocks
        field = PROMPT_TOP.value if prompt else NUM_TOP.value
        kind = {"BLOCK": self._block, "PARTS": self._parts}
        _scan[(rows, min(blocks, max(1, self._programs // rows)))](
            logits, slots, self._words, *self._scanned, self._vocab, blocks, field, **kind, num_warps=4
        )
        scores = Scores(*(buffer[:rows] for buffer in self.scores))
        _rows[(rows,)](
            logits, slots, tokens, self._words, self._named, *self._scanned, *self._scratch, *scores,
            self._vocab, blocks, field, **kind, BLOCKS=triton.next_power_of_2(blocks),
            ALL_PARTS=triton.next_power_of_2(blocks * self._parts), CHUNK=2 * self._block, num_warps=8,
        )  # fmt: skip
        return scores
