"""How rows sample, by slot: every field of `RowSampling` in the form that the kernels read.

The host writes a slot when it is seated; from then on the device keeps counts and history itself. Lists have bounds,
chosen above what the checks of requests let through.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..batch import RowSampling, Seat
from ..kernels import marks, row_words
from ..kernels.sampling import RowState
from ..kernels.workspace import (
    HISTORY,
    MOST_BIASES,
    MOST_IDS,
    MOST_NAMED,
    MOST_SEQUENCES,
    MOST_TOP,
    for_slots,
)
from .arena import Arena, Patch, Words

_LOG2_E = math.log2(math.e)
_LARGEST = float(np.finfo(np.float32).max)
_UNDERFLOW = 104.0
"""exp(-104) is 0 in float32."""
_INTEGERS = np.array([
    row_words.MODE.value, row_words.SEED_LOW.value, row_words.SEED_HIGH.value, row_words.CHOICE.value,
    row_words.TOP_K.value, row_words.MIN_TOKENS.value, row_words.PROMPT_LEN.value, row_words.NUM_SEQUENCES.value,
    row_words.NUM_TOP.value, row_words.PROMPT_TOP.value, row_words.NUM_NAMED.value,
])  # fmt: skip
_NUMBERS = np.array([
    row_words.SCALE.value, row_words.REACH.value, row_words.TOP_P.value, row_words.TOP_P_REST.value,
    row_words.TOP_P_DECAY.value, row_words.TOP_P_BOUND.value, row_words.PRESENCE.value, row_words.FREQUENCY.value,
    row_words.REPETITION.value,
])  # fmt: skip
"""Fields of a row's words, in the order in which `_words` gives them."""


def refusal(sampling: RowSampling) -> str | None:
    """What a row asks beyond the bounds, as a sentence; None: nothing."""
    sequences = _sequences(sampling)
    for what, asked, most in (
        ("logit_bias entries", len(sampling.logit_bias), MOST_BIASES),
        ("logprobs", sampling.logprobs or 0, MOST_TOP),
        ("prompt_logprobs", sampling.prompt_logprobs or 0, MOST_TOP),
        ("logprob_token_ids", len(sampling.logprob_token_ids), MOST_NAMED),
        ("bad words", len(sequences), MOST_SEQUENCES),
        ("ids of bad words in all", sum(map(len, sequences)), MOST_IDS),
        ("ids of one bad word", max(map(len, sequences), default=0), HISTORY),
    ):
        if asked > most:
            return f"{what}: at most {most} on this device, got {asked}"
    return None


def needs_full(sampling: RowSampling) -> bool:
    """Whether the row needs the launches for adjustments and log-probabilities."""
    return _is_adjusted(sampling) or sampling.logprobs is not None


def is_cut(sampling: RowSampling) -> bool:
    """Whether the row needs the launches for cuts."""
    cuts = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.top_p_decay < 1.0 or sampling.min_p > 0.0
    return sampling.temperature > 0 and cuts


class SamplingState:
    """Declares its regions when made; `rows` are their tensors once the arena is allocated. `vocab`: ids of the
    logits. The marks take slots * vocab words."""

    def __init__(self, arena: Arena, num_slots: int, vocab: int) -> None:
        self._arena = arena
        for name, buffer in for_slots(num_slots, vocab).items():
            arena.region(name, *buffer.shape, dtype=getattr(torch, buffer.dtype))

    @property
    def rows(self) -> RowState:
        names = ("sampling", "marks", "biases", "history", "sequence_ends", "sequence_ids", "named")
        return RowState(*(self._arena.tensor(name) for name in names))

    def forget(self, slot: int) -> None:
        """Clear a slot's marks, in stream order."""
        marks.forget(self._arena.tensor("marks"), slot)

    def seat(self, patch: Patch, seat: Seat) -> None:
        """Fill a slot anew. For a row that adjusts its logits the slot's marks are cleared at once, in stream order:
        call before the patch is applied."""
        sampling = seat.sampling
        patch.write("sampling", seat.slot, _words(seat))
        if _is_adjusted(sampling):
            self.forget(seat.slot)
            ids, values = _marks(seat)
            patch.scatter("marks", seat.slot, ids, values)
            if sampling.logit_bias:
                patch.write("biases", seat.slot, [bias for _, bias in sampling.logit_bias])
        sequences = _sequences(sampling)
        if sequences:
            patch.write("sequence_ends", seat.slot, np.cumsum([len(sequence) for sequence in sequences]))
            patch.write("sequence_ids", seat.slot, np.concatenate(sequences))
            positions = range(max(0, len(seat.tokens) - HISTORY), len(seat.tokens))
            patch.scatter(
                "history", seat.slot, [i % HISTORY for i in positions], [seat.tokens[i] for i in positions]
            )
        if sampling.logprob_token_ids:
            patch.write("named", seat.slot, sampling.logprob_token_ids)


def _sequences(sampling: RowSampling) -> list[tuple[int, ...]]:
    return [sequence for sequence in sampling.bad_token_sequences if len(sequence) > 1]


def _is_penalised(sampling: RowSampling) -> bool:
    penalties = sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty - 1.0
    return any(penalties)


def _is_adjusted(sampling: RowSampling) -> bool:
    lists = sampling.logit_bias or sampling.allowed_token_ids or sampling.bad_token_sequences
    return bool(lists) or sampling.min_tokens > 0 or _is_penalised(sampling)


def _mode(sampling: RowSampling) -> int:
    flags = (
        row_words.SEATED.value
        | row_words.RANDOM.value * (sampling.temperature > 0)
        | row_words.CUT.value * is_cut(sampling)
        | row_words.ADJUSTED.value * _is_adjusted(sampling)
        | row_words.ONLY_LISTED.value * bool(sampling.allowed_token_ids)
        | row_words.COUNTED.value * _is_penalised(sampling)
        | row_words.SEQUENCES.value * bool(_sequences(sampling))
    )
    return int(flags)


def _words(seat: Seat) -> NDArray[np.int32]:
    sampling = seat.sampling
    temperature = sampling.temperature
    depth = min(_UNDERFLOW, -math.log(sampling.min_p)) if sampling.min_p > 0 else _UNDERFLOW
    words = np.zeros(row_words.NUM_WORDS.value, dtype=np.uint32)
    words[_INTEGERS] = (
        _mode(sampling),
        sampling.seed & 0xFFFFFFFF,
        sampling.seed >> 32,
        sampling.choice,
        sampling.top_k,
        sampling.min_tokens,
        seat.prompt_len,
        len(_sequences(sampling)),
        0 if sampling.logprobs is None else sampling.logprobs + 1,
        0 if sampling.prompt_logprobs is None else sampling.prompt_logprobs + 1,
        len(sampling.logprob_token_ids),
    )
    words.view(np.float32)[_NUMBERS] = (
        min(_LOG2_E / temperature, _LARGEST) if temperature > 0 else 0.0,
        depth * temperature,
        sampling.top_p,
        sampling.top_p - float(np.float32(sampling.top_p)),
        math.log2(sampling.top_p_decay),
        sampling.top_p_bound if sampling.top_p_decay < 1.0 else 0.0,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
    )
    return words.view(np.int32)


def _marks(seat: Seat) -> tuple[Words, Words]:
    """Token ids, each once, and their marks."""
    sampling = seat.sampling
    parts: list[tuple[ArrayLike, ArrayLike]] = [
        (
            [sequence[0] for sequence in sampling.bad_token_sequences if len(sequence) == 1],
            marks.BANNED.value,
        ),
        (sampling.allowed_token_ids, marks.LISTED.value),
        (sampling.end_token_ids if sampling.min_tokens else (), marks.END.value),
    ]
    found = [(np.unique(np.asarray(ids, dtype=np.int64)), mark) for ids, mark in parts]
    if _is_penalised(sampling):
        tokens = np.asarray(seat.tokens, dtype=np.int64)
        generated, times = np.unique(tokens[seat.prompt_len :], return_counts=True)
        found.append((generated, np.minimum(times, marks.COUNT.value)))
        found.append((np.unique(tokens[: seat.prompt_len]), marks.IN_PROMPT.value))
    biased = np.array([token for token, _ in sampling.logit_bias], dtype=np.int64)
    found.append((biased, (1 + np.arange(biased.size)) << marks.BIAS_SHIFT.value))
    ids, place = np.unique(np.concatenate([ids for ids, _ in found]), return_inverse=True)
    each = np.concatenate([np.broadcast_to(mark, ids.shape) for ids, mark in found])
    together = np.bincount(place, weights=each, minlength=ids.size).astype(np.uint32)
    return ids.astype(np.int32), together.view(np.int32)
