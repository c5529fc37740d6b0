"""The sampler's launches give the tokens of the CPU's sampler, for every parameter and for many at once."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import torch
from sampling_rig import DEVICE, Rig, sampled
from torch import Tensor

from jitney.runtime.batch import RowSampling
from jitney.runtime.kernels.row_words import ALL_BANNED, INFINITE, NAN
from jitney.runtime.steps.sampler import Row, sample

VOCAB = 300
BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


def logits(seed: int, rows: int, dtype: torch.dtype, vocab: int = VOCAB, *, coarse: bool = True) -> Tensor:
    """Coarse logits have ties."""
    values = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    return ((values * 4).round() / 4 if coarse else values).to(dtype)


def rows_of(count: int, **changes: Any) -> list[Row]:
    return [Row(RowSampling(seed=i, **changes), [1] * (1 + i), 1) for i in range(count)]


def expected(values: Tensor, rows: list[Row]) -> list[int]:
    return [drawn.token for drawn in sample(values.float().clone(), rows)]


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.3},
        {"temperature": 1e-30},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 5000},
        {"top_p": 0.8},
        {"top_p": 1e-9},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 40, "top_p": 0.7},
        {"top_k": 200, "top_p": 0.95, "min_p": 0.02, "temperature": 2.0},
        {"top_p": 0.9, "top_p_decay": 0.8, "top_p_bound": 0.3},
        {"top_p_decay": 0.7},
    ],
    ids=str,
)
def test_a_plain_draw_is_the_cpus(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    rows = rows_of(3, **changes)
    values = logits(1, 3, dtype)
    assert sampled(values, rows, full=False)[0] == expected(values, rows)


@BOTH
def test_cuts_break_ties_by_the_lower_id(dtype: torch.dtype) -> None:
    rows = rows_of(2, top_k=70) + rows_of(1, top_p=0.3)
    values = torch.zeros(3, VOCAB, dtype=dtype)
    assert sampled(values, rows, full=False)[0] == expected(values, rows)


def test_logits_of_all_sizes_are_cut_alike() -> None:
    """Brackets across zero, and values many orders of magnitude apart."""
    spread = torch.tensor([10.0**e * s for e in range(-12, 2) for s in (1, -1)])
    values = torch.stack([spread, spread.flip(0), spread * 1e-20])
    rows = [
        Row(RowSampling(seed=3, **changes), [1], 1)
        for changes in ({"top_k": 9}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.5})
    ]
    assert sampled(values, rows, full=False, block=16)[0] == expected(values, rows)


@pytest.mark.parametrize("listed", [16, 128])
def test_top_p_may_fall_to_nothing(listed: int) -> None:
    rows = [Row(RowSampling(seed=1, top_p_decay=0.5), [1] * 400, 1)]
    values = logits(10, 1, torch.float32)
    assert (
        sampled(values, rows, full=False, listed=listed)[0]
        == expected(values, rows)
        == [values.argmax().item()]
    )


@pytest.mark.parametrize("listed", [16, 256])
def test_a_long_list_gives_what_a_search_of_all_gives(listed: int) -> None:
    """16: no list is long enough, so the search goes through all logits; 256: it goes through the list."""
    rows = rows_of(1, top_k=120, top_p=0.9) + rows_of(1, top_p=0.97, temperature=2.0)
    values = logits(4, 2, torch.bfloat16)
    assert sampled(values, rows, full=False, listed=listed)[0] == expected(values, rows)


def test_whole_rows_need_no_search() -> None:
    rows = rows_of(6) + rows_of(2, temperature=0.0)
    values = logits(2, 8, torch.bfloat16)
    assert sampled(values, rows, full=False, cuts=False)[0] == expected(values, rows)


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": ((7, 5.0), (299, -3.0), (12, 4.5))},
        {"allowed_token_ids": (3, 77, 200)},
        {"bad_token_sequences": ((3,), (4,))},
        {"min_tokens": 3, "end_token_ids": (11, 12)},
        {"presence_penalty": 1.5},
        {"frequency_penalty": -0.7},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.5, "presence_penalty": -2.0, "logit_bias": ((1, 1.0),), "top_p": 0.9},
        {"top_k": 30, "logit_bias": ((8, 4.0),)},
    ],
    ids=str,
)
def test_an_adjusted_draw_is_the_cpus(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    rows = [
        Row(RowSampling(seed=i, temperature=float(i % 2), **changes), [9, 3, 8, 8, 9, 8][: 2 + i], 2)
        for i in range(3)
    ]
    values = logits(3, 3, dtype)
    values[:, 3:13] += 6
    assert sampled(values, rows)[0] == expected(values, rows)


def test_the_last_id_of_a_bad_sequence_is_banned_after_the_others() -> None:
    sampling = RowSampling(
        seed=0, temperature=0.0, bad_token_sequences=((1, 2, 3), (9, 3), (2, 5), (1, 1, 2, 5))
    )
    rows = [Row(sampling, tokens, 1) for tokens in ([1, 2], [2, 2], [2], [7, 9], [1, 1, 2], [3])]
    values = torch.zeros(6, VOCAB)
    values[:, 3], values[:, 5] = 2.0, 1.0
    tokens = sampled(values, rows)[0]
    assert tokens == expected(values, rows) == [0, 3, 3, 5, 0, 3]


def random_sampling(rng: random.Random) -> RowSampling:
    def some(value: Any, default: Any) -> Any:
        return value if rng.random() < 0.4 else default

    ids = rng.sample(range(VOCAB), 12)
    return RowSampling(
        seed=rng.getrandbits(64),
        choice=rng.randrange(4),
        temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
        top_p=some(rng.uniform(0.05, 0.99), 1.0),
        top_p_decay=some(rng.uniform(0.7, 1.0), 1.0),
        top_p_bound=some(rng.uniform(0.0, 0.5), 0.0),
        top_k=some(rng.choice([1, 3, 50, 255, 300, 1000]), 0),
        min_p=some(rng.uniform(0.001, 0.3), 0.0),
        presence_penalty=some(rng.uniform(-2, 2), 0.0),
        frequency_penalty=some(rng.uniform(-2, 2), 0.0),
        repetition_penalty=some(rng.uniform(0.5, 2), 1.0),
        logit_bias=some(tuple((i, rng.uniform(-5, 5)) for i in ids[:4]), ()),
        allowed_token_ids=some(tuple(ids), ()),
        bad_token_sequences=some(((ids[0],), (5, 6, ids[1]), (6, ids[2])), ()),
        min_tokens=some(rng.randrange(6), 0),
        end_token_ids=some(tuple(ids[3:6]), ()),
    )


@BOTH
@pytest.mark.parametrize("seed", range(2))
def test_all_parameters_at_once(dtype: torch.dtype, seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    for _ in range(6):
        tokens = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 12))] + [5, 6]
        rows.append(Row(random_sampling(rng), tokens, rng.randrange(1, len(tokens) + 1)))
    values = logits(seed, 6, dtype, coarse=seed % 2 == 0)
    tokens, flags = sampled(values, rows)
    drawn = sample(values.float().clone(), rows)
    assert flags == [ALL_BANNED if one.error else 0 for one in drawn]
    assert tokens == [one.token for one in drawn]


def test_the_device_counts_what_it_draws() -> None:
    sampling = RowSampling(
        seed=4, frequency_penalty=0.8, repetition_penalty=1.2, bad_token_sequences=((5, 6), (6, 7, 5)), min_tokens=3,
        end_token_ids=(1,),
    )  # fmt: skip
    row = Row(sampling, [5, 7], 1)
    rig = Rig([row], 8, torch.float32, block=16)
    tokens = list(row.tokens)
    for step in range(6):
        values = logits(step, 1, torch.float32, 8)
        assert rig.sample(values, [0], [len(tokens)])[0] == expected(values, [Row(sampling, tokens, 1)])
        tokens += expected(values, [Row(sampling, tokens, 1)])


def test_a_slot_forgets_its_last_occupant() -> None:
    banned = RowSampling(seed=0, temperature=0.0, bad_token_sequences=((3,),), presence_penalty=1.0)
    rig = Rig([Row(banned, [3, 3], 1)], VOCAB, torch.float32)
    values = torch.zeros(1, VOCAB)
    values[:, 3] = 1.5
    assert rig.sample(values, [0], [2])[0] == [0]
    rig.seat(0, Row(msgspec.structs.replace(banned, bad_token_sequences=()), [4, 5], 1))
    assert rig.sample(values, [0], [2])[0] == [3]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_faulty_row_is_flagged_and_harms_no_other() -> None:
    values = logits(5, 5, torch.bfloat16)
    values[0, 70], values[1, 200], values[2] = torch.nan, torch.inf, -torch.inf
    rows = rows_of(5, top_k=10)
    tokens, flags = sampled(values, rows, full=False)
    assert flags == [NAN, INFINITE, ALL_BANNED, 0, 0]
    assert tokens[3:] == expected(values[3:], rows[3:])


def test_an_idle_slot_reads_no_logits() -> None:
    rows = rows_of(2)
    values = torch.full((4, VOCAB), torch.nan)
    values[1], values[3] = logits(6, 2, torch.float32)
    rig = Rig(rows, VOCAB, torch.float32)
    tokens, flags = rig.sample(values[:3], [rig.idle, 0, rig.idle], [0, 1, 0])
    assert flags == [0, 0, 0] and tokens == [0, expected(values[1:2], rows[:1])[0], 0]


def test_neither_neighbours_nor_programs_change_a_token() -> None:
    rng = random.Random(7)
    rows = [Row(random_sampling(rng), [1, 2, 5, 6], 2) for _ in range(6)]
    values = logits(7, 6, torch.bfloat16, coarse=False)
    together = sampled(values, rows, programs=12)
    assert together == sampled(values, rows, programs=1)
    rig = Rig(rows, VOCAB, torch.bfloat16, programs=2)
    alone = [rig.sample(values[i : i + 1], [i], [4]) for i in range(6)]
    assert together == ([tokens[0] for tokens, _ in alone], [flags[0] for _, flags in alone])


@BOTH
def test_log_probabilities_are_the_models_own(dtype: torch.dtype) -> None:
    base = RowSampling(seed=0, logit_bias=((7, 100.0),), logprobs=5, logprob_token_ids=(7, 290, 9))
    rows = [
        Row(base, [1], 1),
        Row(msgspec.structs.replace(base, logprobs=None, logprob_token_ids=()), [1], 1),
        Row(RowSampling(seed=3, logprobs=20), [1, 2], 1),
        Row(RowSampling(seed=3, temperature=0.0, logprobs=0), [1, 2], 1),
    ]
    values = logits(8, 4, dtype, coarse=False)
    rig = Rig(rows, VOCAB, dtype)
    rig.sample(values, range(4), [len(row.tokens) for row in rows])
    scores = rig.launches.scorer.scores
    for i, drawn in enumerate(sample(values.float().clone(), rows)):
        if drawn.logprobs is not None:
            num_top = rows[i].sampling.logprobs or 0
            ids = scores.ids[i, :num_top].tolist() + list(rows[i].sampling.logprob_token_ids)
            given = scores.top[i, :num_top].tolist() + scores.named[i, : len(ids) - num_top].tolist()
            assert ids == [token for token, _ in drawn.logprobs.top]
            assert given == pytest.approx([value for _, value in drawn.logprobs.top], abs=2e-5)
            assert scores.own[i].item() == pytest.approx(drawn.logprobs.logprob, abs=2e-5)


def test_tokens_of_a_prompt_are_scored() -> None:
    rows = [Row(RowSampling(seed=0, prompt_logprobs=2), [1, 2], 2)]
    values = logits(9, 3, torch.float32, coarse=False)
    rig = Rig(rows * 3, VOCAB, torch.float32)
    slots, tokens = (torch.tensor(ids, dtype=torch.int32, device=DEVICE) for ids in ([0, 0, 0], [5, 280, 0]))
    scores = rig.launches.scorer.score(values.to(DEVICE), slots, tokens, prompt=True)
    wanted = values.log_softmax(-1)
    assert torch.allclose(scores.own.cpu(), wanted[range(3), tokens.cpu().long()], atol=2e-5)
    assert torch.equal(scores.ids[:, :2].cpu().long(), wanted.topk(2).indices)
