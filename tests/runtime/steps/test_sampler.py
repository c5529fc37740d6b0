"""The sampler: each parameter changes what it should, and all together agree with a twin in plain Python."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest
import torch
from sampling_twin import twin
from torch import Tensor

from jitney.runtime.batch import RowSampling
from jitney.runtime.steps.sampler import Drawn, Row, sample

VOCAB = 600
GREEDY = RowSampling(seed=0, temperature=0.0)


def logits(seed: int, vocab: int = VOCAB, *, coarse: bool = True) -> Tensor:
    """Coarse logits have ties, as bfloat16's do."""
    values = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3
    return (values * 4).round() / 4 if coarse else values


def one(values: Tensor, sampling: RowSampling, tokens: list[int] | None = None, prompt_len: int = 1) -> Drawn:
    return sample(values[None].clone(), [Row(sampling, tokens or [1], prompt_len)])[0]


def greedy(values: Tensor, tokens: list[int] | None = None, prompt_len: int = 1, **changes: Any) -> int:
    return one(values, msgspec.structs.replace(GREEDY, **changes), tokens, prompt_len).token


def drawn(values: Tensor, count: int, **changes: Any) -> list[int]:
    """Tokens of one distribution at `count` positions."""
    rows = [Row(RowSampling(seed=9, **changes), [0] * (i + 1), i + 1) for i in range(count)]
    return [row.token for row in sample(values.expand(count, -1).clone(), rows)]


def random_sampling(rng: random.Random) -> RowSampling:
    def some(value: Any, default: Any) -> Any:
        return value if rng.random() < 0.4 else default

    ids = [rng.randrange(VOCAB) for _ in range(12)]
    return RowSampling(
        seed=rng.getrandbits(64),
        choice=rng.randrange(4),
        temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
        top_p=some(rng.uniform(0.05, 0.99), 1.0),
        top_p_decay=some(rng.uniform(0.3, 0.99), 1.0),
        top_p_bound=some(rng.uniform(0.0, 0.5), 0.0),
        top_k=some(rng.choice([1, 3, 50, 255, 256, 300, 1000]), 0),
        min_p=some(rng.uniform(0.001, 0.3), 0.0),
        presence_penalty=some(rng.uniform(-2, 2), 0.0),
        frequency_penalty=some(rng.uniform(-2, 2), 0.0),
        repetition_penalty=some(rng.uniform(0.5, 2), 1.0),
        logit_bias=some(tuple((i, rng.uniform(-5, 5)) for i in ids[:4]), ()),
        allowed_token_ids=some(tuple(set(ids)), ()),
        bad_token_sequences=some(((ids[0],), (5, 6, ids[1]), (6, ids[2])), ()),
        min_tokens=some(rng.randrange(6), 0),
        end_token_ids=some(tuple(ids[3:6]), ()),
    )


def test_agrees_with_the_twin() -> None:
    rng = random.Random(1)
    for _ in range(12):
        rows, values = [], []
        for _ in range(25):
            tokens = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 12))] + [5, 6]
            rows.append(Row(random_sampling(rng), tokens, rng.randrange(1, len(tokens) + 1)))
            values.append(logits(rng.getrandbits(30), coarse=rng.random() < 0.7))
        results = sample(torch.stack(values), rows)
        for row, value, result in zip(rows, values, results, strict=True):
            expected = twin(value.tolist(), row.sampling, row.tokens, row.prompt_len)
            assert (None if result.error else result.token) == expected, row


def test_rows_do_not_see_each_other() -> None:
    rng = random.Random(2)
    scored = [msgspec.structs.replace(random_sampling(rng), logprobs=5) for _ in range(33)]
    rows = [Row(sampling, [1, 2, 3, 5, 6][: 1 + i % 5], 1) for i, sampling in enumerate(scored)]
    values = torch.stack([logits(i, 5000) for i in range(33)])
    together = sample(values.clone(), rows)
    assert together == [sample(values[i : i + 1].clone(), [row])[0] for i, row in enumerate(rows)]


def test_greedy_takes_the_lowest_of_equals() -> None:
    values = torch.zeros(49152)
    values[[40000, 700, 701]] = 2.0
    assert greedy(values) == 700


def test_temperature() -> None:
    values = torch.tensor([0.0, 1.0, 2.0])
    assert set(drawn(values, 200, temperature=0.05)) == {2}
    assert set(drawn(values, 200, temperature=2.0)) == {0, 1, 2}
    assert set(drawn(values, 20, temperature=1e-30)) == {2}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.75}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.3}, {0, 1}),
        ({"top_k": 3, "top_p": 0.88}, {0, 1}),
        ({}, {0, 1, 2, 3}),
    ],
)
def test_cuts(changes: dict[str, Any], expected: set[int]) -> None:
    values = torch.tensor([0.55, 0.3, 0.1, 0.05]).log()
    assert set(drawn(values, 300, **changes)) == expected


def test_a_decaying_top_p_narrows_with_each_token_down_to_its_bound() -> None:
    values = torch.tensor([0.55, 0.3, 0.1, 0.05]).log()
    for bound, expected in ((0.0, [{0, 1, 2, 3}, {0, 1}, {0}, {0}]), (0.6, [{0, 1, 2, 3}] + [{0, 1}] * 3)):
        for generated, kept in enumerate(expected):
            sampling = [
                RowSampling(seed=seed, top_p=0.99, top_p_decay=0.7, top_p_bound=bound) for seed in range(300)
            ]
            rows = [Row(each, [0] * (3 + generated), 3) for each in sampling]
            assert {drawn.token for drawn in sample(values.repeat(300, 1), rows)} == kept


def test_cuts_break_ties_by_the_lower_id() -> None:
    for vocab in (8, 2000):
        values = torch.zeros(vocab)
        assert set(drawn(values, 200, top_k=3)) == {0, 1, 2}


def test_a_flat_top_p_reaches_past_the_candidates() -> None:
    tokens = set(drawn(torch.zeros(2000), 600, top_p=0.5))
    assert max(tokens) < 1000 and max(tokens) > 900


def test_the_draw_follows_the_distribution() -> None:
    probabilities = logits(3, 200, coarse=False).softmax(-1)
    count = 8000
    tokens = torch.tensor(drawn(probabilities.log(), count))
    seen = torch.bincount(tokens, minlength=200).double()
    expected = probabilities.double() * count
    common = expected >= 5
    observed = torch.cat([seen[common], seen[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    freedom = len(wanted) - 1
    chi_square = ((observed - wanted) ** 2 / wanted).sum().item()
    assert chi_square < freedom + 3.5 * math.sqrt(2 * freedom)


def test_seed_choice_and_position_each_change_the_draw() -> None:
    values = torch.zeros(5000)
    base = one(values, RowSampling(seed=1)).token
    others = [RowSampling(seed=2), RowSampling(seed=1 + 2**40), RowSampling(seed=1, choice=1)]
    tokens = [one(values, other).token for other in others] + [one(values, RowSampling(seed=1), [1, 2]).token]
    assert len({base, *tokens}) == 5
    assert one(values, RowSampling(seed=1)).token == base


def test_logit_bias() -> None:
    values = torch.tensor([0.0, 1.0, 3.0])
    assert greedy(values, logit_bias=((0, 3.5),)) == 0
    assert greedy(values, logit_bias=((2, -100.0),)) == 1


def test_allowed_and_bad_tokens() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert greedy(values, allowed_token_ids=(0, 1)) == 1
    assert greedy(values, bad_token_sequences=((3,),)) == 2
    assert greedy(values, [1, 2], bad_token_sequences=((1, 2, 3),)) == 2
    assert greedy(values, [2, 2], bad_token_sequences=((1, 2, 3),)) == 3
    assert greedy(values, [2], bad_token_sequences=((1, 2, 3),)) == 3


def test_min_tokens_holds_the_end_back() -> None:
    values = torch.tensor([0.0, 1.0, 2.0])
    assert greedy(values, [0, 0], min_tokens=2, end_token_ids=(2,)) == 1
    assert greedy(values, [0, 0, 0], min_tokens=2, end_token_ids=(2,)) == 2


def test_presence_and_frequency_count_what_was_generated() -> None:
    values = torch.tensor([0.0, 1.0, 2.0])
    assert greedy(values, [2, 2], presence_penalty=1.5) == 1
    assert greedy(values, [2, 2], 2, presence_penalty=1.5) == 2
    assert greedy(values, [0, 2, 2], presence_penalty=0.9) == 2
    assert greedy(values, [0, 2, 2], frequency_penalty=0.9) == 1


def test_repetition_counts_the_prompt_too() -> None:
    values = torch.tensor([-1.0, 1.0, 1.5])
    assert greedy(values, [2], repetition_penalty=2.0) == 1
    assert greedy(torch.tensor([-1.0, -1.1]), [0], repetition_penalty=1.2) == 1


def test_logprobs_are_the_models_own() -> None:
    values = logits(4, 50, coarse=False)
    expected = values.log_softmax(-1)
    sampling = RowSampling(
        seed=0, temperature=0.0, logit_bias=((7, 100.0),), logprobs=3, logprob_token_ids=(7, 9)
    )
    scores = one(values, sampling).logprobs
    assert scores is not None and scores.token_id == 7
    assert scores.logprob == expected[7].item()
    likeliest = expected.argsort(descending=True)[:3].tolist()
    assert [token for token, _ in scores.top] == [*likeliest, 7, 9]
    assert all(logprob == expected[token].item() for token, logprob in scores.top)
    assert one(values, GREEDY).logprobs is None
    none = one(values, msgspec.structs.replace(GREEDY, logprobs=0)).logprobs
    assert none is not None and none.top == ()


def test_a_row_that_cannot_be_sampled_fails_alone() -> None:
    values = torch.stack([logits(1), logits(2), logits(3)])
    values[1, 5] = math.nan
    banned = RowSampling(seed=0, allowed_token_ids=(4,), bad_token_sequences=((4,),))
    rows = [Row(banned, [1], 1), Row(RowSampling(seed=0), [1], 1), Row(GREEDY, [1], 1)]
    results = sample(values, rows)
    assert results[0].error == "every token is banned"
    assert results[1].error == "the model's logits hold a NaN"
    assert results[2].error is None and results[2].token == int(logits(3).argmax())
