"""Log-probabilities of the model's own distribution: of a token, of the k likeliest, and of ids asked for by name.

First each block of a row's vocabulary gives its highest logit, its sum of exponentials and its k highest as sortable
keys; then one program a row puts these together. Logits are read as they are: before bans, bias and penalties.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .row_words import NUM_NAMED, NUM_TOP, PROMPT_TOP, row_word
from .search import ordinal, value_of

MOST_TOP = 20
MOST_NAMED = 1024
_MOST_TOP = tl.constexpr(MOST_TOP)
_MOST_NAMED = tl.constexpr(MOST_NAMED)
_TOPS = tl.constexpr(triton.next_power_of_2(MOST_TOP))
_LEAST = tl.constexpr(-(1 << 62))
_ID_BITS = tl.constexpr(0xFFFFFFFF)
_NAMED_AT_ONCE = tl.constexpr(128)


class Scores(NamedTuple):
    """Of R rows, natural logarithms. own [R] float32: of the row's token; ids [R, MOST_TOP] int32 and top [R, MOST_TOP]
    float32: of the likeliest, by falling value, then rising id; named [R, MOST_NAMED] float32, in the order asked."""

    own: Tensor
    ids: Tensor
    top: Tensor
    named: Tensor


@triton.jit
def _blocks(
    logits, slots, words, peaks, sums, keys, vocab, num_blocks, FIELD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    num_top = row_word(words, tl.load(slots + row), FIELD) - 1
    if num_top >= 0:
        for block in range(tl.program_id(1), num_blocks, tl.num_programs(1)):
            ids = block * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(logits + row * vocab + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
            peak = tl.max(values, axis=0)
            at = row * num_blocks + block
            tl.store(peaks + at, peak)
            tl.store(sums + at, tl.sum(tl.exp(values - tl.maximum(peak, -3e38)), axis=0))
            ranked = (ordinal(values) << 32) + (ids.to(tl.int64) ^ _ID_BITS)
            ranked = tl.where(ids < vocab, ranked, _LEAST)
            for i in range(num_top):
                first = tl.max(ranked, axis=0)
                tl.store(keys + at * _MOST_TOP + i, first)
                ranked = tl.where(ranked == first, _LEAST, ranked)


@triton.jit
def _rows(
    logits, slots, tokens, words, named, peaks, sums, keys, own, top_ids, top, named_scores, vocab, num_blocks,
    FIELD: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    num_top = row_word(words, slot, FIELD) - 1
    if num_top >= 0:
        at = tl.arange(0, BLOCKS)
        peak_of = tl.load(peaks + row * num_blocks + at, mask=at < num_blocks, other=float("-inf"))
        sum_of = tl.load(sums + row * num_blocks + at, mask=at < num_blocks, other=0.0)
        peak = tl.max(peak_of, axis=0)
        total = peak + tl.log(tl.sum(sum_of * tl.exp(tl.maximum(peak_of, -3e38) - peak), axis=0))
        tl.store(own + row, tl.load(logits + row * vocab + tl.load(tokens + row)).to(tl.float32) - total)
        column = tl.arange(0, _TOPS)
        mask = (at < num_blocks)[:, None] & (column < num_top)[None, :]
        ranked = tl.load(
            keys + (row * num_blocks + at)[:, None] * _MOST_TOP + column[None, :], mask=mask, other=_LEAST
        )
        for i in range(num_top):
            first = tl.max(tl.max(ranked, axis=1), axis=0)
            tl.store(top_ids + row * _MOST_TOP + i, (first & _ID_BITS) ^ _ID_BITS)
            tl.store(top + row * _MOST_TOP + i, value_of(first >> 32) - total)
            ranked = tl.where(ranked == first, _LEAST, ranked)
        if FIELD == NUM_TOP:
            num_named = row_word(words, slot, NUM_NAMED)
            for start in range(0, num_named, _NAMED_AT_ONCE):
                place = start + tl.arange(0, _NAMED_AT_ONCE)
                wanted = tl.load(named + slot * _MOST_NAMED + place, mask=place < num_named, other=0)
                values = tl.load(logits + row * vocab + wanted, mask=place < num_named, other=0.0).to(
                    tl.float32
                )
                tl.store(named_scores + row * _MOST_NAMED + place, values - total, mask=place < num_named)


class Scorer:
    """`rows`: the most of one call."""

    def __init__(
        self,
        words: Tensor,
        named: Tensor,
        rows: int,
        vocab: int,
        block: int,
        programs: int,
        device: torch.device,
    ) -> None:
        self._words, self._named, self._vocab = words, named, vocab
        self._block, self._programs = block, programs
        self._num_blocks = triton.cdiv(vocab, block)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._peaks, self._sums = buffer(rows, self._num_blocks), buffer(rows, self._num_blocks)
        self._keys = buffer(rows, self._num_blocks, MOST_TOP, dtype=torch.int64)
        self.scores = Scores(
            buffer(rows),
            buffer(rows, MOST_TOP, dtype=torch.int32),
            buffer(rows, MOST_TOP),
            buffer(rows, MOST_NAMED),
        )

    def score(self, logits: Tensor, slots: Tensor, tokens: Tensor, *, prompt: bool = False) -> Scores:
        """Of each row's token [R] int32 and of what its slot asks for by `logprobs`, or, of a `prompt`, by
        `prompt_logprobs`. logits [R, vocab] contiguous, slots [R] int32. Rows that ask for nothing are left as they
        were. Results at fixed addresses, valid until the next call; nothing is allocated or waited for."""
        rows, blocks = logits.size(0), self._num_blocks
        field = PROMPT_TOP if prompt else NUM_TOP
        work = self._peaks, self._sums, self._keys
        _blocks[(rows, min(blocks, max(1, self._programs // rows)))](
            logits,
            slots,
            self._words,
            *work,
            self._vocab,
            blocks,
            FIELD=field,
            BLOCK=self._block,
            num_warps=4,
        )
        scores = Scores(*(buffer[:rows] for buffer in self.scores))
        _rows[(rows,)](
            logits, slots, tokens, self._words, self._named, *work, *scores, self._vocab, blocks,
            FIELD=field, BLOCKS=triton.next_power_of_2(blocks), num_warps=8,
        )  # fmt: skip
        return scores
