"""The sampler again, without torch: one row, one token, every rule spelled out as its documentation says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jitney.runtime.batch import RowSampling
from jitney.runtime.steps.philox import uniform

_BANNED = np.float32(-math.inf)


def adjusted(
    logits: Sequence[float], sampling: RowSampling, tokens: Sequence[int], prompt_len: int
) -> list[np.float32]:
    values = [np.float32(value) for value in logits]
    generated = list(tokens[prompt_len:])
    if sampling.allowed_token_ids:
        values = [v if i in sampling.allowed_token_ids else _BANNED for i, v in enumerate(values)]
    for sequence in sampling.bad_token_sequences:
        rest = list(sequence[:-1])
        if not rest or list(tokens[-len(rest) :]) == rest:
            values[sequence[-1]] = _BANNED
    if len(generated) < sampling.min_tokens:
        for token in sampling.end_token_ids:
            values[token] = _BANNED
    for token, bias in sampling.logit_bias:
        values[token] += np.float32(bias)
    for token in set(tokens):
        penalty = np.float32(sampling.repetition_penalty)
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token in set(generated):
        frequency = np.float32(sampling.frequency_penalty) * np.float32(generated.count(token))
        values[token] -= np.float32(sampling.presence_penalty) + frequency
    return values


def twin(
    logits: Sequence[float], sampling: RowSampling, tokens: Sequence[int], prompt_len: int
) -> int | None:
    """The token, or None where every one is banned."""
    values = adjusted(logits, sampling, tokens, prompt_len)
    peak = max(values)
    if peak == -math.inf:
        return None
    if sampling.temperature == 0:
        return values.index(peak)
    weights = [float(np.exp((v - peak) / np.float32(sampling.temperature))) for v in values]
    ranked = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    total, mass = sum(weights[i] for i in ranked), 0.0
    kept: list[int] = []
    top_p = max(sampling.top_p_bound, sampling.top_p * sampling.top_p_decay ** (len(tokens) - prompt_len))
    if sampling.top_p_decay == 1.0:
        top_p = sampling.top_p
    for i in ranked:
        if (mass < top_p * total or not kept) and weights[i] >= sampling.min_p:
            kept.append(i)
        mass += weights[i]
    point = uniform(sampling.seed, sampling.choice, len(tokens)) * sum(weights[i] for i in kept)
    mass = 0.0
    for i in sorted(kept):
        mass += weights[i]
        if mass > point:
            return i
    return max(kept)
