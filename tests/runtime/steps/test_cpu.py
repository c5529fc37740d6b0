"""The step's own edges: faults of one row, prompt scores, int8, what close gives back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import msgspec
import pytest
import torch
from processors import needs_int8
from step_driver import GREEDY, Driver, Row
from tiny_models import TensorWeights, random_weights, small_llama

from jitney.runtime.batch import Batch, Chunk, RowSampling, Step
from jitney.runtime.config import EngineConfig
from jitney.runtime.errors import ModelError
from jitney.runtime.model import linear_int8
from jitney.runtime.model.program import Program
from jitney.runtime.steps.cpu import open_cpu_step
from jitney.runtime.steps.layout import Tile

MODEL = small_llama(max_position=256, dtype="float32")
CONFIG = EngineConfig(dtype="float32", max_rows=4, kv_cache_bytes=2**24, tune_process=False)
POISON = 500


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def step(request: pytest.FixtureRequest) -> Iterator[Step]:
    """Any row that holds the token POISON computes NaNs."""
    weights = random_weights(MODEL)
    embedding = weights.tensors["model.embed_tokens.weight"].clone()
    embedding[POISON] = float("nan")
    head = weights.tensors["model.embed_tokens.weight"]
    untied = small_llama(max_position=256, dtype="float32", tied_embeddings=False)
    tensors = {**weights.tensors, "model.embed_tokens.weight": embedding, "lm_head.weight": head}
    config = msgspec.structs.replace(CONFIG, dtype=request.param)
    opened = open_cpu_step(untied, TensorWeights(tensors), config)
    yield opened
    opened.close()


def test_a_failed_row_fails_alone_and_its_pages_can_be_used_again(step: Step) -> None:
    [expected] = Driver(step).generate([Row(range(40))], 5)
    driver = Driver(step)
    sound, broken = Row(range(40)), Row([*range(1, 50), POISON, *range(20)])
    seats = [driver.seat(0, sound, 5), driver.seat(1, broken, 5)]
    outcomes = driver.run(seats, [Chunk(0, 0, 40, True), Chunk(1, 0, 70, True)])
    assert outcomes[1].error and outcomes[1].tokens == ()
    tokens = list(outcomes[0].tokens)
    outcomes = driver.run(decodes=[0, 1])
    assert outcomes[1].error is None or outcomes[1].tokens == ()
    tokens += outcomes[0].tokens
    while len(tokens) < 5:
        tokens += driver.run(decodes=[0])[0].tokens
    assert tokens == expected
    again = Row(range(40))
    Driver(step, pages=driver.tables[1]).generate([again], 5)
    assert again.generated == expected


def test_a_chunk_that_does_not_sample_reports_only_a_fault(step: Step) -> None:
    driver = Driver(step)
    row, broken = Row(range(64)), Row([POISON] * 64)
    seats = [driver.seat(0, row, 1), driver.seat(1, broken, 1)]
    outcomes = driver.run(seats, [Chunk(0, 0, 32, False), Chunk(1, 0, 32, False)])
    assert list(outcomes) == [1] and outcomes[1].error


def test_an_empty_batch_gives_nothing(step: Step) -> None:
    assert step.collect(step.launch(Batch(0, (), (), (), ()))) == []


def test_prompt_scores_continue_across_chunks(step: Step) -> None:
    asks = RowSampling(seed=0, temperature=0.0, prompt_logprobs=2)
    whole, cut = Row(range(90), asks), Row(range(90), asks, cuts=(1, 33, 89))
    Driver(step).generate([whole], 1)
    Driver(step).generate([cut], 1)
    scores = [entry for outcome in cut.outcomes for entry in outcome.prompt_logprobs]
    assert tuple(scores) == whole.outcomes[0].prompt_logprobs
    assert scores[0] is None and [entry.token_id for entry in scores[1:] if entry] == list(range(1, 90))
    assert all(entry is not None and len(entry.top) == 2 for entry in scores[1:])


def test_pages_may_come_one_by_one(step: Step) -> None:
    [expected] = Driver(step).generate([Row(range(30))], 40)
    driver = Driver(step)
    seat = driver.seat(2, Row(range(30)), 40, pages=(7,))
    tokens = list(driver.run([seat], [Chunk(2, 0, 30, True)])[2].tokens)
    new_pages = {32: 5, 64: 3}
    for position in range(30, 69):
        grown = [(2, (new_pages[position],))] if position in new_pages else []
        tokens += driver.run(decodes=[2], grown=grown)[2].tokens
    assert tokens == expected


def test_a_missing_or_misshapen_tensor_is_named() -> None:
    tensors = dict(random_weights(MODEL).tensors)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name][:, 1:]
    with pytest.raises(
        ModelError, match=r"layers\.1\.mlp\.down_proj\.weight: expected 192 x 384, got 192 x 383"
    ):
        open_cpu_step(MODEL, TensorWeights(tensors), CONFIG)
    del tensors[name]
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight: expected in the checkpoint"):
        open_cpu_step(MODEL, TensorWeights(tensors), CONFIG)


def test_close_gives_weights_and_threads_back() -> None:
    before = torch.get_num_threads()
    config = EngineConfig(dtype="float32", num_threads=1, max_context=64)
    first = open_cpu_step(MODEL, random_weights(MODEL), config)
    second = open_cpu_step(MODEL, random_weights(MODEL), config)
    pools = [weakref.ref(pool) for pool in first._forward._pages]  # type: ignore[attr-defined]
    first.close()
    gc.collect()
    assert all(pool() is None for pool in pools)
    assert torch.get_num_threads() == 1
    second.close()
    assert torch.get_num_threads() == before


def test_threads_are_left_alone_when_told() -> None:
    before = torch.get_num_threads()
    config = EngineConfig(dtype="float32", num_threads=1, max_context=64, tune_process=False)
    step = open_cpu_step(MODEL, random_weights(MODEL), config)
    assert torch.get_num_threads() == before
    step.close()


@needs_int8
def test_int8_rows_are_exact_and_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(96, 640, generator=generator), torch.randn(96, generator=generator)
    x = torch.randn(70, 640, generator=generator)
    program, packed = Program(linear_int8), linear_int8.pack(weight, bias)
    with torch.inference_mode():
        result = program.linear(x, packed, 512)
        loud = x.clone()
        loud[1:] *= 50
        assert torch.equal(program.linear(loud, packed, 512)[0], result[0])
        assert torch.equal(program.linear(x[:1].clone(), packed, 512)[0], result[0])
        scale = weight.abs().amax(1) / 127
        peak = x.abs().amax(1, keepdim=True)
        levels = torch.floor(x * (127 / peak) + 128.5) - 128
        exact = levels.double() @ (weight / scale[:, None]).round().double().T
        expected = exact * (peak / 127).double() * scale.double() + bias.double()
    assert torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-5)
    assert (result - (x @ weight.T + bias)).abs().max() < 0.02 * result.abs().max()


@needs_int8
def test_int8_generates() -> None:
    config = EngineConfig(quantize="int8", dtype="bfloat16", max_rows=2, max_context=64)
    step = open_cpu_step(MODEL, random_weights(MODEL), config)
    [tokens] = Driver(step).generate([Row(range(20), GREEDY)], 8)
    assert len(tokens) == 8
    step.close()


@pytest.mark.parametrize(("rows", "padding"), [(1, 1), (2, 0), (32, 0), (33, 1), (64, 0), (65, 1)])
def test_a_tile_is_never_left_with_too_few_rows(rows: int, padding: int) -> None:
    assert Tile(2, 32).padding(rows) == padding
    assert (rows + Tile(32, 32).padding(rows)) % 32 == 0
