"""What the host writes for a seat: the words that kernels read, the marks of its tokens, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sampling_rig import Rig

from jitney.runtime.batch import RowSampling
from jitney.runtime.cuda.sampling_state import is_cut, needs_full, refusal
from jitney.runtime.kernels import marks, row_words
from jitney.runtime.params import MAX_LISTED_IDS, MAX_LOGPROBS
from jitney.runtime.steps.sampler import Row

VOCAB = 40


def seated(row: Row) -> tuple[dict[str, np.ndarray], Rig]:
    """The slot's words, as integers and as floats, and its marks."""
    rig = Rig([row], VOCAB, torch.float32)
    words = rig.state.rows.words[0].cpu().numpy()
    return {
        "int": words,
        "float": words.view(np.float32),
        "marks": rig.state.rows.marks[0].cpu().numpy(),
    }, rig


def test_an_empty_slot_is_idle() -> None:
    rig = Rig([], VOCAB, torch.float32)
    assert not rig.state.rows.words.any()


def test_a_seed_and_the_parameters_of_the_draw() -> None:
    sampling = RowSampling(seed=2**64 - 2, choice=3, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1)
    words, _ = seated(Row(sampling, [1, 2, 3], 2))
    fields = (
        row_words.SEED_LOW,
        row_words.SEED_HIGH,
        row_words.CHOICE,
        row_words.TOP_K,
        row_words.PROMPT_LEN,
    )
    assert [words["int"][field.value] for field in fields] == [-2, -1, 3, 7, 2]
    assert words["float"][row_words.SCALE.value] == np.float32(2 / np.log(2))
    whole = float(words["float"][row_words.TOP_P.value]) + float(words["float"][row_words.TOP_P_REST.value])
    assert whole == pytest.approx(0.9, abs=1e-14)
    assert words["int"][row_words.MODE.value] == (row_words.SEATED | row_words.RANDOM | row_words.CUT).value


@pytest.mark.parametrize("temperature", [0.0, 1e-40])
def test_no_temperature_makes_an_infinite_scale(temperature: float) -> None:
    words, _ = seated(Row(RowSampling(seed=0, temperature=temperature), [1], 1))
    assert np.isfinite(words["float"][row_words.SCALE.value])


def test_marks_hold_what_was_said_and_what_is_asked() -> None:
    sampling = RowSampling(
        seed=0,
        presence_penalty=1.0,
        logit_bias=((5, 1.5), (6, -2.0)),
        bad_token_sequences=((7,), (8, 9)),
        allowed_token_ids=(5, 7),
        min_tokens=2,
        end_token_ids=(30,),
    )
    words, rig = seated(Row(sampling, [1, 5, 1, 5, 5], 2))
    expected = np.zeros(VOCAB, dtype=np.int64)
    expected[1] = 1 + marks.IN_PROMPT.value
    expected[5] = 2 + marks.IN_PROMPT.value + marks.LISTED.value + (1 << marks.BIAS_SHIFT.value)
    expected[6] = 2 << marks.BIAS_SHIFT.value
    expected[7] = marks.BANNED.value + marks.LISTED.value
    expected[30] = marks.END.value
    assert words["marks"].tolist() == expected.tolist()
    assert rig.state.rows.biases[0, :2].tolist() == [1.5, -2.0]
    assert rig.state.rows.history[0, :5].tolist() == [1, 5, 1, 5, 5]


def test_a_thousand_biases_fit_a_mark() -> None:
    bias = tuple((i, i / 100) for i in range(MAX_LISTED_IDS))
    row = Row(RowSampling(seed=0, temperature=0.0, logit_bias=bias), [1], 1)
    rig = Rig([row], MAX_LISTED_IDS, torch.float32)
    assert rig.sample(torch.zeros(1, MAX_LISTED_IDS), [0], [1]) == ([MAX_LISTED_IDS - 1], [0])


@pytest.mark.parametrize(
    ("changes", "adjusted", "cut"),
    [
        ({}, False, False),
        ({"top_k": 3}, False, True),
        ({"top_p_decay": 0.9}, False, True),
        ({"top_k": 3, "temperature": 0.0}, False, False),
        ({"logprobs": 0}, True, False),
        ({"min_tokens": 1}, True, False),
        ({"repetition_penalty": 1.1, "min_p": 0.1}, True, True),
    ],
)
def test_which_launches_a_row_needs(changes: dict[str, Any], adjusted: bool, cut: bool) -> None:
    sampling = RowSampling(seed=0, **changes)
    assert (needs_full(sampling), is_cut(sampling)) == (adjusted, cut)


def test_what_the_edge_lets_through_is_not_refused() -> None:
    ids = tuple(range(MAX_LISTED_IDS))
    sampling = RowSampling(
        seed=0,
        logit_bias=tuple((i, 1.0) for i in ids),
        allowed_token_ids=ids,
        bad_token_sequences=tuple((i, i + 1, i + 2) for i in range(2 * MAX_LISTED_IDS)),
        logprobs=MAX_LOGPROBS,
        prompt_logprobs=MAX_LOGPROBS,
        logprob_token_ids=ids,
        end_token_ids=ids,
    )
    assert refusal(sampling) is None


def test_what_is_beyond_the_bounds_is_named() -> None:
    sequences = tuple(tuple(range(1000)) for _ in range(20))
    refused = refusal(RowSampling(seed=0, bad_token_sequences=sequences))
    assert refused == "ids of bad words in all: at most 16384 on this device, got 20000"
