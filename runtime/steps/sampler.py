"""From logits to tokens, row by row: every field of `RowSampling`, in the order that it documents.

A row's token depends on its own logits, history and seed only; rows that need nothing special go through together.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from torch import Tensor

from ..batch import RowSampling, TokenLogprobs
from .adjust import adjust, is_adjusted
from .draw import draw
from .philox import uniform


class Row(msgspec.Struct, frozen=True):
    """`tokens`: the prompt and what was generated; the token to draw comes after them."""

    sampling: RowSampling
    tokens: Sequence[int]
    prompt_len: int


class Drawn(msgspec.Struct, frozen=True):
    """A token with its log-probabilities where the row asks for them, or the error that ends the row."""

    token: int = 0
    logprobs: TokenLogprobs | None = None
    error: str | None = None


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Drawn]:
    """logits [rows, vocab] float32, changed in place."""
    scored = {i: logits[i].log_softmax(-1) for i, row in enumerate(rows) if row.sampling.logprobs is not None}
    for i, row in enumerate(rows):
        if is_adjusted(row.sampling, len(row.tokens) - row.prompt_len):
            adjust(logits[i], row.sampling, row.tokens, row.prompt_len)
    peaks, likeliest = logits.max(1)
    errors = [_fault(peak) for peak in peaks.tolist()]
    tokens = _tokens(logits, rows, errors, likeliest.tolist())
    return [
        Drawn(error=errors[i])
        if errors[i]
        else Drawn(tokens[i], _logprobs(scored[i], tokens[i], row.sampling) if i in scored else None)
        for i, row in enumerate(rows)
    ]


def token_logprobs(logprobs: Tensor, token: int, num_top: int, named: Sequence[int] = ()) -> TokenLogprobs:
    """logprobs [vocab] of one position."""
    values, ids = logprobs.topk(num_top)
    top = sorted(zip(ids.tolist(), values.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    top += [(token_id, logprobs[token_id].item()) for token_id in named]
    return TokenLogprobs(token, logprobs[token].item(), tuple(top))


def _decayed(row: Row) -> RowSampling:
    """With top_p as it is after what the row has generated."""
    sampling = row.sampling
    if sampling.top_p_decay == 1.0:
        return sampling
    top_p = sampling.top_p * sampling.top_p_decay ** (len(row.tokens) - row.prompt_len)
    return msgspec.structs.replace(sampling, top_p=max(top_p, sampling.top_p_bound))


def _logprobs(logprobs: Tensor, token: int, sampling: RowSampling) -> TokenLogprobs:
    return token_logprobs(logprobs, token, sampling.logprobs or 0, sampling.logprob_token_ids)


def _fault(peak: float) -> str | None:
    if peak != peak:
        return "the model's logits hold a NaN"
    if peak == float("-inf"):
        return "every token is banned"
    if peak == float("inf"):
        return "the model's logits hold an infinity"
    return None


def _tokens(
    logits: Tensor, rows: Sequence[Row], errors: Sequence[str | None], likeliest: list[int]
) -> list[int]:
    random = [i for i, row in enumerate(rows) if not errors[i] and row.sampling.temperature > 0]
    if random:
        picked = logits if len(random) == len(rows) else logits[random]
        samplings = [_decayed(rows[i]) for i in random]
        points = [
            uniform(rows[i].sampling.seed, rows[i].sampling.choice, len(rows[i].tokens)) for i in random
        ]
        for i, token in zip(random, draw(picked, samplings, points), strict=True):
            likeliest[i] = token
    return likeliest
