"""Log-probabilities on their way to the host: copied behind the pass that made them, read after its event.

A prompt's tokens are scored by the hidden states before them, so a chunk's last state is kept for the first token of
the next. Where the position before a chunk came from the cache there is none, and the entry is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..batch import Chunk, Seat, TokenLogprobs
from ..kernels.scores import Scores


class ScoreCopy:
    """Scores of R rows in pinned memory. `named` is copied only where some row names ids."""

    def __init__(self, scores: Scores, *, named: bool) -> None:
        own, ids, top, by_name = scores
        self._own, self._ids, self._top = _pinned(own), _pinned(ids), _pinned(top)
        self._named = _pinned(by_name) if named else None

    def read(self, row: int, token: int, num_top: int, names: Sequence[int]) -> TokenLogprobs:
        """After the event of the pass."""
        ids, top = self._ids[row, :num_top].tolist(), self._top[row, :num_top].tolist()
        pairs = list(zip(ids, top, strict=True))
        if names and self._named is not None:
            pairs += zip(names, self._named[row, : len(names)].tolist(), strict=True)
        return TokenLogprobs(token, float(self._own[row]), tuple(pairs))


class PromptScores:
    """Scores the chunks of prompts whose rows ask for it. `score` gives the scores of hidden states [n, hidden] for
    the next tokens [n] of a slot; at most `most` at a time."""

    def __init__(self, score: Callable[[Tensor, int, Tensor], Scores], most: int) -> None:
        self._score, self._most = score, most
        self._tails: dict[int, Tensor] = {}

    def forget(self, slot: int) -> None:
        self._tails.pop(slot, None)

    def score(self, seat: Seat, chunk: Chunk, hidden: Tensor) -> ChunkScores:
        """Enqueue what `chunk`, whose hidden states are [count, hidden], makes known."""
        tail = self._tails.pop(seat.slot, None)
        end = min(chunk.start + chunk.count, seat.prompt_len)
        self._tails[seat.slot] = hidden[-1:].clone()
        known = 0 if tail is None else 1
        first = chunk.start + 1 - known
        targets = seat.tokens[first:end]
        copies: list[ScoreCopy] = []
        for at in range(0, len(targets), self._most):
            few = targets[at : at + self._most]
            states = hidden[max(0, at - known) : at - known + len(few)]
            if tail is not None and not at:
                states = torch.cat([tail, states])
            ids = torch.tensor(few, dtype=torch.int32, pin_memory=hidden.is_cuda)
            ids = ids.to(hidden.device, non_blocking=True)
            copies.append(ScoreCopy(self._score(states, seat.slot, ids), named=False))
        return ChunkScores(
            copies, targets, first - chunk.start, self._most, seat.sampling.prompt_logprobs or 0
        )


class ChunkScores:
    """A chunk's entries, readable after the event of its pass."""

    def __init__(
        self, copies: list[ScoreCopy], targets: Sequence[int], num_unknown: int, most: int, num_top: int
    ) -> None:
        self._copies, self._targets, self._num_unknown = copies, targets, num_unknown
        self._most, self._num_top = most, num_top

    def read(self) -> tuple[TokenLogprobs | None, ...]:
        return (*[None] * self._num_unknown, *self._entries())

    def _entries(self) -> Iterator[TokenLogprobs]:
        for i, token in enumerate(self._targets):
            yield self._copies[i // self._most].read(i % self._most, token, self._num_top, ())


def _pinned(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)
