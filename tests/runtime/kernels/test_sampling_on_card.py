"""Sampling at full size, on a card: the CPU's tokens from 150,000 logits, true rates, and the same from a graph."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from sampling_rig import Rig
from torch import Tensor

from jitney.runtime.batch import RowSampling
from jitney.runtime.kernels.shortlist import COMPARED, LISTED
from jitney.runtime.kernels.workspace import SCAN_BLOCK as BLOCK
from jitney.runtime.kernels.workspace import SCAN_PART as PART
from jitney.runtime.steps.sampler import Row, sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")
VOCAB = 151936
SIZES = {"block": BLOCK, "part": PART, "listed": LISTED, "compared": COMPARED, "programs": 1024}


def peaked(rows: int, vocab: int = VOCAB) -> Tensor:
    values = torch.randn(rows, vocab, device="cuda") * 2.2
    likely = torch.randint(vocab, (rows, 200), device="cuda")
    return values.scatter(1, likely, 8 + 2.5 * torch.randn(rows, 200, device="cuda"))


def random_row(rng: random.Random, *, full: bool) -> Row:
    def some(value: Any, default: Any) -> Any:
        return value if rng.random() < 0.4 else default

    ids = rng.sample(range(VOCAB), 8)
    sampling = RowSampling(
        seed=rng.getrandbits(64),
        temperature=rng.choice([0.0, 0.3, 1.0, 1.0, 2.0]),
        top_p=some(rng.uniform(0.05, 0.99), 1.0),
        top_k=some(rng.choice([1, 3, 50, 300, 5000]), 0),
        min_p=some(rng.uniform(0.001, 0.3), 0.0),
        frequency_penalty=some(rng.uniform(-2, 2), 0.0) if full else 0.0,
        repetition_penalty=some(rng.uniform(0.5, 2), 1.0) if full else 1.0,
        logit_bias=some(tuple((i, rng.uniform(-5, 25)) for i in ids[:4]), ()) if full else (),
        bad_token_sequences=some(((ids[0],), (5, 6, ids[1]), (6, ids[2])), ()) if full else (),
    )
    tokens = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 20))] + [5, 6]
    return Row(sampling, tokens, rng.randrange(1, len(tokens)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shape", ["peaked", "flat"])
def test_a_full_vocabulary_gives_the_cpus_tokens(dtype: torch.dtype, full: bool, shape: str) -> None:
    torch.manual_seed(1)
    rng = random.Random(1)
    rows = [random_row(rng, full=full) for _ in range(40)]
    values = (peaked(40) if shape == "peaked" else torch.randn(40, VOCAB, device="cuda")).to(dtype)
    rig = Rig(rows, VOCAB, dtype, **SIZES)
    positions = [len(row.tokens) for row in rows]
    tokens, flags = rig.sample(values, range(40), positions, full=full)
    assert tokens == [drawn.token for drawn in sample(values.float().cpu(), rows)]
    assert not any(flags)
    if not full:
        alone = [rig.sample(values[i : i + 1], [i], positions[i : i + 1], full=full)[0] for i in range(40)]
        assert [[token] for token in tokens] == alone


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.9}, {"top_k": 300, "temperature": 1.3}])
def test_draws_follow_the_distribution(changes: dict[str, Any]) -> None:
    torch.manual_seed(2)
    values = peaked(1, 3000).bfloat16()
    rows = [Row(RowSampling(seed=i, **changes), [1], 1) for i in range(256)]
    rig = Rig(rows, 3000, torch.bfloat16, **SIZES)
    slots = torch.arange(256, dtype=torch.int32, device="cuda")
    together, seen = values.expand(256, -1).contiguous(), torch.zeros(3000, device="cuda")
    for position in range(1, 201):
        tokens, _ = rig.launches.sample(together, slots, torch.full_like(slots, position), full=False)
        seen += torch.bincount(tokens, minlength=3000)
    expected = distribution(values[0].double().cpu(), RowSampling(seed=0, **changes)) * 256 * 200
    common = expected >= 5
    observed = torch.cat([seen.double().cpu()[common], seen.double().cpu()[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]).clamp(min=1e-9)
    freedom = len(wanted) - 1
    assert ((observed - wanted) ** 2 / wanted).sum() < freedom + 4 * math.sqrt(2 * freedom)


def distribution(values: Tensor, sampling: RowSampling) -> Tensor:
    weights = ((values - values.max()) / sampling.temperature).exp()
    ranked = weights.sort(descending=True, stable=True)
    kept = ranked.values.clone()
    if sampling.top_k:
        kept[sampling.top_k :] = 0
    kept[kept.cumsum(0) - kept >= sampling.top_p * kept.sum()] = 0
    return torch.zeros_like(weights).scatter(0, ranked.indices, kept / kept.sum())


def test_a_graph_gives_what_its_launches_give() -> None:
    torch.manual_seed(3)
    rng = random.Random(3)
    rows = [random_row(rng, full=True) for _ in range(16)]
    values = peaked(16).bfloat16()
    rig = Rig(rows, VOCAB, torch.bfloat16, **SIZES)
    slots = torch.arange(16, dtype=torch.int32, device="cuda")
    positions = torch.tensor([len(row.tokens) for row in rows], dtype=torch.int32, device="cuda")
    expected = rig.launches.sample(values, slots, positions, full=False)[0].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, _ = rig.launches.sample(values, slots, positions, full=False)
    tokens.zero_()
    graph.replay()
    assert torch.equal(tokens, expected)
