"""Log-probabilities of prompt tokens, chunk by chunk.

A token is scored by the hidden state before it, so a chunk's last state is kept for the next chunk's first token.
Where the position before a chunk came from the cache there is none, and the entry is None.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..batch import Chunk, TokenLogprobs
from .sampler import token_logprobs
from .slots import Occupant

ROWS_AT_ONCE = 64
"""Positions whose logits exist at the same time."""


class PromptScorer:
    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self._logits = logits
        self._tails: dict[int, Tensor] = {}

    def forget(self, slot: int) -> None:
        """The slot has a new occupant."""
        self._tails.pop(slot, None)

    def score(self, chunk: Chunk, occupant: Occupant, hidden: Tensor) -> tuple[TokenLogprobs | None, ...]:
        """One entry for each prompt token of the chunk; hidden [chunk.count, hidden_size]."""
        count = min(chunk.count, occupant.prompt_len - chunk.start)
        tokens = occupant.tokens[chunk.start : chunk.start + count]
        scores: list[TokenLogprobs | None] = []
        tail = self._tails.get(chunk.slot)
        if count > 0:
            scores += [None] if tail is None else self._score(tail, tokens[:1], occupant)
            scores += self._score(hidden[: count - 1], tokens[1:], occupant)
        self._tails[chunk.slot] = hidden[-1:].clone()
        return tuple(scores)

    def _score(self, hidden: Tensor, tokens: list[int], occupant: Occupant) -> list[TokenLogprobs]:
        num_top = occupant.sampling.prompt_logprobs or 0
        scores: list[TokenLogprobs] = []
        for at in range(0, len(tokens), ROWS_AT_ONCE):
            logprobs = self._logits(hidden[at : at + ROWS_AT_ONCE]).log_softmax(-1)
            part = tokens[at : at + ROWS_AT_ONCE]
            scores += [token_logprobs(row, token, num_top) for row, token in zip(logprobs, part, strict=True)]
        return scores
