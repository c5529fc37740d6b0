"""Megatron's arguments: each honoured, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write_checkpoint

from jitney.export import EngineBuilder
from jitney.runtime import EngineConfig
from jitney.runtime.errors import InvalidField, ModelError
from jitney.runtime.weights.engine import EngineCheckpoint

MEGATRON: dict[str, Any] = {
    "max_input_len": 40,
    "max_output_len": 24,
    "max_batch_size": 3,
    "lora_ckpt_list": None,
    "use_lora_plugin": None,
    "max_lora_rank": 64,
    "lora_target_modules": None,
    "max_prompt_embedding_table_size": 0,
    "paged_kv_cache": True,
    "remove_input_padding": True,
    "paged_context_fmha": True,
    "use_refit": False,
    "max_num_tokens": 96,
    "max_seq_len": None,
    "opt_num_tokens": None,
    "max_beam_width": 1,
    "tokens_per_block": 32,
    "multiple_profiles": False,
    "gpt_attention_plugin": "auto",
    "gemm_plugin": "auto",
    "reduce_fusion": False,
}


def test_the_engine_has_the_sizes(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    manifest = EngineBuilder.build_and_save_engine(tmp_path / "engine", source, **MEGATRON)
    assert (manifest.limits.max_rows, manifest.limits.max_context) == (3, 64)
    engine = EngineCheckpoint(tmp_path / "engine")
    assert engine.context_length == 64
    step = engine.open_step(EngineConfig(device="cpu", tune_process=False))
    assert step.capacity.max_rows == 3 and [tile.max_batch_tokens for tile in engine.tiles] == [96] * len(
        engine.tiles
    )
    step.close()


def test_max_seq_len_counts_before_the_two_lengths(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    manifest = EngineBuilder.build_and_save_engine(tmp_path / "engine", source, max_seq_len=32)
    assert manifest.limits.max_context == 32


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return "x" if value is None else "float16" if value == "auto" else 2 * value + 1


HONOURED = ("max_input_len", "max_output_len", "max_batch_size", "max_num_tokens", "max_seq_len")


@pytest.mark.parametrize(
    "name, value",
    [(name, other(value)) for name, value in MEGATRON.items() if name not in HONOURED],
)
def test_another_value_is_refused_by_name(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match=name):
        EngineBuilder.build_and_save_engine(tmp_path / "engine", "source", **{name: value})
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_batch_size", 0),
        ("max_seq_len", -1),
        ("max_num_tokens", 1.5),
        ("quantize", "int2"),
        ("made_up", 1),
    ]
    + [("tensor_parallel_size", 0), ("max_input_len", True), ("config", object())]
    + [("max_kl", "small"), ("max_kl", True), ("max_kl", -1.0), ("accept_quality", 1)],
)
def test_nonsense_is_refused_by_name(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match="tp" if name == "tensor_parallel_size" else name):
        EngineBuilder.build_and_save_engine(tmp_path / "engine", "source", **{name: value})


def test_no_such_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        EngineBuilder.build_and_save_engine(tmp_path / "engine", "no such model")
