"""A plan's bytes are those that a step takes: each part against the tensors of a step that was built by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch

pytest.importorskip("triton")

from card import interpreted

from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import build_step
from jitney.runtime.cuda.plan import GRAPH_BYTES, DevicePlan, plan_device, weight_bytes
from jitney.runtime.cuda.sizes import PAGE_TOKENS
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.errors import CannotServe
from jitney.runtime.kernels.processors import INTERPRETED
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.weights.random_weights import RandomWeights

CPU = torch.device("cpu")
FREE = 8 * 2**30
NOT_TENSORS = {"graphs", "CUDA"}


def model(**changes: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "vocab_size": 3000,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_position": 512,
        "tied_embeddings": True,
    }
    return ModelConfig(**(shape | changes))


def built(shape: ModelConfig, config: EngineConfig, dtype: torch.dtype) -> tuple[DevicePlan, CudaStep]:
    size = {"value_bytes": dtype.itemsize, "processors": INTERPRETED}
    plan = plan_device(shape, config, FREE, **size)
    return plan, build_step(shape, RandomWeights("m", shape), config, plan, dtype, CPU)


def tensors(found: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """All that an object of ours holds, through lists, structs and attributes."""
    if id(found) in seen or isinstance(found, str | int | float | type(None)):
        return
    seen.add(id(found))
    if isinstance(found, torch.Tensor):
        yield found
        return
    inside: list[object] = []
    if isinstance(found, dict):
        inside = list(found.values())
    elif isinstance(found, list | tuple):
        inside = list(found)
    elif isinstance(found, msgspec.Struct):
        inside = [getattr(found, name) for name in found.__struct_fields__]
    elif type(found).__module__.startswith("jitney."):
        names = getattr(found, "__dict__", None) or getattr(found, "__slots__", ())
        inside = [getattr(found, name) for name in names]
    for part in inside:
        yield from tensors(part, seen)


def taken(*parts: object) -> int:
    """Bytes of the memory behind, each once."""
    seen: set[int] = set()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for part in parts
        for tensor in tensors(part, seen)
    }
    return sum(size for at, size in storages.items() if at)


SHAPES = {
    "tied": model(),
    "untied": model(tied_embeddings=False),
    "qwen3": model(qk_norm=True),
    "qwen2": model(qkv_bias=True),
    "gpt": model(
        norm="layer", gated_mlp=False, activation="gelu", qkv_bias=True, attention_out_bias=True,
        mlp_bias=True, num_kv_heads=4,
    ),
    "sliding": model(sliding_window=40, sliding_layers=(True, False)),
    "wide": model(vocab_size=4100, head_dim=64, num_kv_heads=1, num_layers=3),
}  # fmt: skip
CONFIGS = {
    "plain": EngineConfig(max_rows=3, max_batch_tokens=128),
    "rows": EngineConfig(max_rows=40, max_batch_tokens=256, max_context=200),
    "fp8": EngineConfig(max_rows=2, max_batch_tokens=64, quantize="fp8", kv_dtype="fp8"),
    "deterministic": EngineConfig(max_rows=2, max_batch_tokens=64, mode="deterministic"),
}


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_part_is_what_the_step_takes(
    shape: ModelConfig, config: EngineConfig, dtype: torch.dtype
) -> None:
    plan, step = built(shape, config, dtype)
    forward = step._forward
    ops, layers = forward._ops, forward._layers
    rope = layers.shared.pop("rope")
    found = {
        "weights": taken(layers),
        "rotary tables": taken(rope),
        "activations": taken(ops._buffers),
        "linear layers": taken(ops._linears),
        "attention": 0 if ops._decode is None else taken(ops._decode),
        "KV pages": taken([cache.pool for cache in ops._caches]),
    }
    expected = {name: size for name, size in plan.parts.items() if name not in NOT_TENSORS}
    shared = expected.pop("slots") + expected.pop("sampling")
    assert found == expected
    # The sampler holds views of the arena, which both of its owners share.
    assert taken(step._arena, forward._sampler, forward._gathered) == shared
    layers.shared["rope"] = rope
    step.close()


@interpreted
def test_the_whole_is_the_sum_of_the_tensors() -> None:
    plan, step = built(SHAPES["qwen3"], CONFIGS["rows"], torch.bfloat16)
    host = {
        tensor.untyped_storage().data_ptr()
        for tensor in tensors([step._staging._blocks, step._outbox.ring], set())
    }
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors([step._forward, step._arena], set())
    }
    on_device = sum(size for at, size in storages.items() if at and at not in host)
    assert on_device == plan.total_bytes - sum(plan.parts[name] for name in NOT_TENSORS)
    step.close()


@interpreted
def test_the_graphs_of_a_plan_are_those_that_a_step_captures() -> None:
    plan, step = built(SHAPES["qwen3"], CONFIGS["rows"], torch.bfloat16)
    missing = len(step._graphs._missing)
    assert plan.parts["graphs"] == (missing + len(step._graphs._replays)) * GRAPH_BYTES
    step.close()


def test_pages_fill_what_is_left_up_to_a_context_for_each_row() -> None:
    shape, config = model(max_position=4096), EngineConfig(max_rows=8, memory_bytes=FREE // 8)
    tight = plan_device(shape, config, FREE)
    assert tight.total_bytes <= FREE // 8
    roomy = plan_device(shape, EngineConfig(max_rows=8), FREE)
    assert roomy.sizes.num_pages == 8 * 4096 // PAGE_TOKENS + 1
    assert roomy.num_tokens == 8 * 4096


@pytest.mark.parametrize("asked,given", [(1, PAGE_TOKENS), (1000, 1000), (20_000, 20_000), (None, 8192)])
def test_a_pass_holds_as_many_tokens_as_the_scheduler_is_told_to_plan(asked: int | None, given: int) -> None:
    config = EngineConfig(max_rows=2, max_batch_tokens=asked)
    assert plan_device(model(), config, FREE).sizes.prefill_tokens == given


def test_fp8_pages_take_half() -> None:
    config = EngineConfig(max_rows=8, kv_dtype="fp8")
    plain, narrow = (
        plan_device(model(), c, FREE).parts["KV pages"] for c in (EngineConfig(max_rows=8), config)
    )
    assert plain == 2 * narrow


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    shape = model(max_position=1 << 20)
    fixed = sum(size for name, size in plan_device(model(), EngineConfig(max_rows=2), FREE).parts.items())
    with pytest.raises(CannotServe, match=r"max_context=\d+ would fit"):
        plan_device(shape, EngineConfig(max_rows=2, memory_bytes=fixed + 200 * 2**20), FREE)
    with pytest.raises(CannotServe, match="no context would fit"):
        plan_device(shape, EngineConfig(max_rows=2, memory_bytes=2**20), FREE)
    with pytest.raises(CannotServe, match="the card has"):
        plan_device(shape, EngineConfig(memory_bytes=FREE + 1), FREE)


def test_a_pool_that_is_too_small_for_a_context_says_what_would_fit_in_it() -> None:
    page_bytes = plan_device(model(), EngineConfig(max_rows=1), FREE).parts["KV pages"] // 9
    with pytest.raises(CannotServe, match=r"kv_cache_bytes=\d.* max_context=128 would fit"):
        plan_device(model(), EngineConfig(max_rows=1, kv_cache_bytes=3 * page_bytes), FREE)


@pytest.mark.parametrize("head_dim,kv_dtype", [(100, "auto"), (72, "fp8")])
def test_heads_that_no_kernel_loads_are_refused(head_dim: int, kv_dtype: Any) -> None:
    with pytest.raises(CannotServe, match=f"head_dim={head_dim}.*multiple of 16 bytes"):
        plan_device(model(head_dim=head_dim), EngineConfig(kv_dtype=kv_dtype), FREE)


def test_weights_of_known_models() -> None:
    llama = model(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32,
        num_kv_heads=8, head_dim=64,
    )  # fmt: skip
    assert weight_bytes(llama, 2, 2) == 2 * 1_235_814_400
