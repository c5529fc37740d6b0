"""Tensor-parallel parts: for every ratio of heads and ranks, the parts of a tensor joined are the tensor, and what the
ranks compute adds up to what the whole model computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joined_shards import joined

from jitney.export.shards import Sharding
from jitney.runtime.errors import ModelError
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.weights.layout import expected_shapes


@st.composite
def sharded_models(draw: st.DrawFn) -> tuple[ModelConfig, int]:
    """Every ratio: more ranks than key-value heads, as many, fewer; ranks that are no power of two."""
    ranks = draw(st.integers(1, 12))
    kv = draw(st.sampled_from([n for n in range(1, 13) if n % ranks == 0 or ranks % n == 0]))
    least = max(ranks, kv) if ranks % kv == 0 or kv % ranks == 0 else ranks * kv
    config = ModelConfig(
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=draw(st.integers(1, 6)),
        intermediate_size=ranks * draw(st.integers(1, 4)),
        num_layers=draw(st.integers(1, 2)),
        num_heads=least * draw(st.integers(1, 3)),
        num_kv_heads=kv,
        head_dim=draw(st.sampled_from([2, 4])),
        max_position=draw(st.integers(1, 8)),
        norm=draw(st.sampled_from(["rms", "layer"])),
        gated_mlp=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        attention_out_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        learned_positions=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()),
    )
    return config, ranks


@settings(max_examples=300, deadline=None)
@given(sharded_models())
def test_the_parts_joined_are_the_whole(case: tuple[ModelConfig, int]) -> None:
    config, ranks = case
    sharding = Sharding(config, ranks)
    rank_shapes = expected_shapes(sharding.rank_config)
    for at, (name, shape) in enumerate(expected_shapes(config).items()):
        whole = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape) + at
        parts = [sharding.part(name, whole, rank) for rank in range(ranks)]
        assert {tuple(part.shape) for part in parts} == {rank_shapes[name]} == {sharding.shape(name, shape)}
        assert torch.equal(joined(config, name, parts), whole), name


@settings(max_examples=100, deadline=None)
@given(sharded_models())
def test_each_query_head_sits_with_its_key_value_head(case: tuple[ModelConfig, int]) -> None:
    config, ranks = case
    sharding, dim = Sharding(config, ranks), config.head_dim
    group = config.num_heads // config.num_kv_heads
    q = torch.arange(config.num_heads).repeat_interleave(dim)[:, None].expand(-1, config.hidden_size)
    k = torch.arange(config.num_kv_heads).repeat_interleave(dim)[:, None].expand(-1, config.hidden_size)
    rank_group = sharding.rank_config.num_heads // sharding.rank_config.num_kv_heads
    for rank in range(ranks):
        queries = sharding.part("model.layers.0.self_attn.q_proj.weight", q, rank)[::dim, 0]
        keys = sharding.part("model.layers.0.self_attn.k_proj.weight", k, rank)[::dim, 0]
        assert [keys[at // rank_group].item() for at in range(len(queries))] == (queries // group).tolist()


@settings(max_examples=100, deadline=None)
@given(sharded_models())
def test_the_ranks_sums_are_the_models(case: tuple[ModelConfig, int]) -> None:
    """A gated MLP over the ranks, and the vocabulary's logits side by side."""
    config, ranks = case
    sharding = Sharding(config, ranks)
    generator = torch.Generator().manual_seed(0)
    hidden, inner = config.hidden_size, config.intermediate_size
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    sizes = [(inner, hidden), (inner, hidden), (hidden, inner)]
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    x = torch.randn(3, hidden, generator=generator, dtype=torch.float64)

    def mlp(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    parts = [
        [sharding.part(n, t, rank) for n, t in zip(names, tensors, strict=True)] for rank in range(ranks)
    ]
    torch.testing.assert_close(sum(mlp(*part) for part in parts), mlp(*tensors))
    head = torch.randn(config.vocab_size, hidden, generator=generator, dtype=torch.float64)
    logits = torch.cat([x @ sharding.part("lm_head.weight", head, rank).T for rank in range(ranks)], 1)
    torch.testing.assert_close(logits[:, : config.vocab_size], x @ head.T)
    assert not logits[:, config.vocab_size :].any()


@pytest.mark.parametrize(
    ("changes", "ranks", "named"),
    [
        ({"num_heads": 6}, 4, "6 attention heads"),
        ({"num_heads": 12, "num_kv_heads": 6}, 4, "6 key-value heads"),
        ({"intermediate_size": 10}, 4, "10 MLP columns"),
        ({}, 0, "at least 1"),
    ],
)
def test_what_cannot_be_divided_is_named(changes: dict[str, int], ranks: int, named: str) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 16, "num_layers": 1, "num_heads": 8}
    sizes |= {"num_kv_heads": 2, "head_dim": 2, "max_position": 8}
    with pytest.raises(ModelError, match=named):
        Sharding(ModelConfig(**(sizes | changes)), ranks)  # type: ignore[arg-type]
