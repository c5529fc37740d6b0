"""What changes a row's logits before temperature: bans, bias, penalties. In place, one row at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import RowSampling

_BANNED = float("-inf")


def is_adjusted(sampling: RowSampling, num_generated: int) -> bool:
    """Whether this row has anything to do here."""
    return bool(
        sampling.logit_bias
        or sampling.allowed_token_ids
        or sampling.bad_token_sequences
        or num_generated < sampling.min_tokens
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.repetition_penalty != 1.0
    )


def adjust(logits: Tensor, sampling: RowSampling, tokens: Sequence[int], prompt_len: int) -> None:
    """logits [vocab]; `tokens` are the prompt and all that was generated."""
    _ban(logits, sampling, tokens, prompt_len)
    if sampling.logit_bias:
        ids, values = zip(*sampling.logit_bias, strict=True)
        logits.index_add_(0, torch.tensor(ids), torch.tensor(values, dtype=logits.dtype))
    _penalise(logits, sampling, tokens, prompt_len)


def _ban(logits: Tensor, sampling: RowSampling, tokens: Sequence[int], prompt_len: int) -> None:
    if sampling.allowed_token_ids:
        allowed = torch.tensor(sampling.allowed_token_ids)
        kept = logits[allowed]
        logits.fill_(_BANNED)
        logits[allowed] = kept
    banned = [
        sequence[-1]
        for sequence in sampling.bad_token_sequences
        if len(sequence) == 1 or tuple(tokens[-len(sequence) + 1 :]) == sequence[:-1]
    ]
    if len(tokens) - prompt_len < sampling.min_tokens:
        banned += sampling.end_token_ids
    if banned:
        logits[torch.tensor(banned)] = _BANNED


def _penalise(logits: Tensor, sampling: RowSampling, tokens: Sequence[int], prompt_len: int) -> None:
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(tokens)))
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = Counter(tokens[prompt_len:])
        if counts:
            times = torch.tensor(list(counts.values()), dtype=logits.dtype)
            penalties = sampling.presence_penalty + sampling.frequency_penalty * times
            logits[torch.tensor(list(counts))] -= penalties
