"""Log-probabilities as the routes list them. JSON has no infinities: what is impossible shows as -9999."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...runtime.backend import Tokenizer
from ...runtime.batch import TokenLogprobs

LEAST = -9999.0


def entries(logprobs: Iterable[TokenLogprobs], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """One entry a token: its text, bytes and log-probability, and those of the listed alternatives."""
    return [
        {
            **_entry(tokenizer, at.token_id, at.logprob),
            "top_logprobs": [_entry(tokenizer, token, logprob) for token, logprob in at.top],
        }
        for at in logprobs
    ]


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "bytes": list(tokenizer.token_bytes(token_id)),
        "logprob": max(logprob, LEAST),
    }


def columns(
    logprobs: Iterable[TokenLogprobs | None], tokenizer: Tokenizer, *, offset: int, first: str = ""
) -> tuple[dict[str, Any], int]:
    """The completions form: parallel lists, and the offset after them. A None is the prompt's first token, `first`,
    which has no log-probability."""
    listed = list(logprobs)
    tokens = [first if at is None else tokenizer.token_text(at.token_id) for at in listed]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [None if at is None else max(at.logprob, LEAST) for at in listed],
        "top_logprobs": [
            None if at is None else {tokenizer.token_text(token): max(lp, LEAST) for token, lp in at.top}
            for at in listed
        ],
        "text_offset": offsets,
    }, offset
