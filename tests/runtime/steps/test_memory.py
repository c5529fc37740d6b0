"""What fits is decided in bytes, before a weight is read."""

from __future__ import annotations

import re

import msgspec
import pytest
from tiny_models import random_weights, small_llama

from jitney.runtime.config import EngineConfig
from jitney.runtime.errors import CannotServe
from jitney.runtime.steps import padded
from jitney.runtime.steps.cpu import open_cpu_step
from jitney.runtime.steps.memory import PAGE_TOKENS, free_memory, plan_memory, weight_bytes

MODEL = small_llama(max_position=1024)
PAGE_BYTES = 2 * 3 * 2 * 32 * PAGE_TOKENS * 2
ONE_CONTEXT = 1024 // PAGE_TOKENS


def test_the_pool_is_what_was_asked() -> None:
    plan = plan_memory(MODEL, EngineConfig(kv_cache_bytes=50 * PAGE_BYTES + 1), 2, 0, None)
    assert (plan.num_pages, plan.context) == (50, 1024)


def test_the_pool_holds_no_more_than_one_context_a_row() -> None:
    assert plan_memory(MODEL, EngineConfig(max_rows=2), 2, 0, None).num_pages == 2 * ONE_CONTEXT + 1


def test_a_quarter_of_what_is_free_by_default() -> None:
    plan = plan_memory(MODEL, EngineConfig(), 2, 0, 400 * PAGE_BYTES)
    assert plan.num_pages == 100


def test_at_least_one_context_by_default() -> None:
    assert plan_memory(MODEL, EngineConfig(), 2, 0, 40 * PAGE_BYTES).num_pages == ONE_CONTEXT + 1


@pytest.mark.parametrize(
    ("config", "free_pages", "weight_pages", "fits"),
    [
        (EngineConfig(kv_cache_bytes=10 * PAGE_BYTES), None, 0, 288),
        (EngineConfig(), 20, 5, 448),
        (EngineConfig(kv_cache_bytes=50 * PAGE_BYTES), 30, 2, 864),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    config: EngineConfig, free_pages: int | None, weight_pages: int, fits: int
) -> None:
    weights, free = weight_pages * PAGE_BYTES, free_pages and free_pages * PAGE_BYTES
    with pytest.raises(CannotServe, match=f"max_context={fits} would fit") as caught:
        plan_memory(MODEL, config, 2, weights, free)
    told = re.findall(r"(max_context|kv_cache_bytes)=(\d+)\b(?!,)", str(caught.value))
    plan_memory(
        MODEL, msgspec.structs.replace(config, **{key: int(value) for key, value in told}), 2, weights, free
    )


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(CannotServe, match="no context would fit"):
        plan_memory(MODEL, EngineConfig(kv_cache_bytes=1), 2, 0, None)


def test_nothing_is_read_when_nothing_fits() -> None:
    weights = random_weights(MODEL)
    with pytest.raises(CannotServe):
        open_cpu_step(MODEL, weights, EngineConfig(kv_cache_bytes=1000))
    assert weights.read == []


def test_padded_batches_read_nothing_when_the_weights_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, config = random_weights(MODEL), EngineConfig(dtype="float32", tune_process=False)
    needed = weight_bytes(MODEL, 4, 4)
    monkeypatch.setattr(padded, "free_memory", lambda: needed - 1)
    with pytest.raises(
        CannotServe, match=f"{needed - 1:,} bytes of memory are free; weights take {needed:,}"
    ):
        padded.PaddedModel(MODEL, weights, config)
    assert weights.read == []
    monkeypatch.setattr(padded, "free_memory", lambda: needed)
    padded.PaddedModel(MODEL, weights, config).close()


def test_weights_are_counted() -> None:
    tensors = random_weights(MODEL).tensors.values()
    matrices = sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)
    assert weight_bytes(MODEL, 2, 2) == 2 * (matrices + MODEL.vocab_size * MODEL.hidden_size)


def test_free_memory_is_plausible() -> None:
    free = free_memory()
    assert free is None or 2**20 < free < 2**50
