"""`--format trtllm`: the names, shapes and mapping of TensorRT-LLM's checkpoint, rank by rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import silent, tensors_of
from tiny_checkpoints import write_checkpoint
from tiny_models import TensorWeights, small_llama

from jitney.export.open import open_source
from jitney.export.options import ExportOptions
from jitney.export.source import Source
from jitney.export.trtllm_config import trtllm_fields
from jitney.export.trtllm_directory import build_command, export_trtllm, run_builder
from jitney.runtime.backend import GenerationDefaults
from jitney.runtime.errors import ModelError
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.weights.layout import expected_shapes


def written(source: Source, target: Path, **options: Any) -> list[dict[str, torch.Tensor]]:
    export_trtllm(source, target, ExportOptions(source="source", **options), silent)
    return [tensors_of(path) for path in sorted(target.glob("rank*.safetensors"))]


def test_one_rank_of_a_llama(tmp_path: Path) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", "Llama", tie_word_embeddings=True))
    [rank] = written(source, tmp_path / "trt")
    get = source.weights.get
    layer = {"input_layernorm.weight", "post_layernorm.weight", "attention.qkv.weight"}
    layer |= {"attention.dense.weight", "mlp.fc.weight", "mlp.gate.weight", "mlp.proj.weight"}
    outer = {"transformer.vocab_embedding.weight", "transformer.ln_f.weight", "lm_head.weight"}
    assert set(rank) == outer | {f"transformer.layers.{i}.{name}" for i in (0, 1) for name in layer}
    ours = "model.layers.1."
    qkv = torch.cat([get(f"{ours}self_attn.{name}_proj.weight") for name in "qkv"])
    assert rank["transformer.layers.1.attention.qkv.weight"].equal(qkv)
    assert rank["transformer.layers.1.mlp.fc.weight"].equal(get(ours + "mlp.gate_proj.weight"))
    assert rank["transformer.layers.1.mlp.gate.weight"].equal(get(ours + "mlp.up_proj.weight"))
    assert rank["lm_head.weight"].equal(get("model.embed_tokens.weight"))
    config = json.loads((tmp_path / "trt" / "config.json").read_text())
    assert config["architecture"] == "LlamaForCausalLM" and config["hidden_act"] == "silu"
    assert config["mapping"] == {"world_size": 1, "tp_size": 1, "pp_size": 1}


def test_tensor_and_pipeline_parallel(tmp_path: Path) -> None:
    """Four tensor-parallel ranks hold the two key-value heads twice; layer numbers are each stage's own."""
    source = open_source(write_checkpoint(tmp_path / "source", "Llama", num_hidden_layers=4))
    ranks = written(source, tmp_path / "trt", tp=4, pp=2)
    assert len(ranks) == 8
    for number, rank in enumerate(ranks):
        stage, part = divmod(number, 4)
        assert ("transformer.vocab_embedding.weight" in rank) == (stage == 0)
        assert ("lm_head.weight" in rank) == ("transformer.ln_f.weight" in rank) == (stage == 1)
        assert {name.split(".")[2] for name in rank if ".layers." in name} == {"0", "1"}
        name = f"model.layers.{2 * stage + 1}."
        q, k, v = (source.weights.get(f"{name}self_attn.{n}_proj.weight") for n in "qkv")
        head, kv = slice(8 * part, 8 * part + 8), slice(8 * (part // 2), 8 * (part // 2) + 8)
        qkv = rank["transformer.layers.1.attention.qkv.weight"]
        assert qkv.equal(torch.cat([q[head], k[kv], v[kv]]))
        dense = source.weights.get(name + "self_attn.o_proj.weight")[:, head]
        assert rank["transformer.layers.1.attention.dense.weight"].equal(dense)
        proj = source.weights.get(name + "mlp.down_proj.weight")[:, 12 * part : 12 * part + 12]
        assert rank["transformer.layers.1.mlp.proj.weight"].equal(proj)
    assert ranks[0]["transformer.vocab_embedding.weight"].shape == (24, 32)


def test_a_gpt_with_layer_norm_and_learned_positions(tmp_path: Path) -> None:
    config = small_llama(
        norm="layer", gated_mlp=False, learned_positions=True, rope_theta=None, qkv_bias=True, activation="gelu",
        attention_out_bias=True, mlp_bias=True, dtype="float32", max_position=64, num_layers=1,
    )  # fmt: skip
    tensors = {name: torch.randn(shape) for name, shape in expected_shapes(config).items()}
    [rank] = written(made(config, tensors, tmp_path), tmp_path / "trt")
    assert rank["transformer.position_embedding.weight"].shape == (64, 192)
    assert rank["transformer.layers.0.mlp.fc.weight"].equal(tensors["model.layers.0.mlp.up_proj.weight"])
    assert "transformer.layers.0.mlp.gate.weight" not in rank
    assert rank["transformer.layers.0.attention.qkv.bias"].shape == (6 * 32 + 4 * 32,)
    assert rank["transformer.ln_f.bias"].equal(tensors["model.norm.bias"])
    fields = json.loads((tmp_path / "trt" / "config.json").read_text())
    assert (
        fields["architecture"] == "GPTForCausalLM" and fields["position_embedding_type"] == "learned_absolute"
    )


def made(config: ModelConfig, tensors: dict[str, torch.Tensor], path: Path) -> Source:
    weights: Any = TensorWeights(tensors)
    return Source(
        name="made",
        path=path,
        format="megatron-torch",
        config=config,
        weights=weights,
        tokenizer=None,
        generation=GenerationDefaults(),
    )


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"qk_norm": True}, "norms of queries and keys"),
        ({"sliding_window": 8}, "sliding windows"),
        ({"quantization": "int8"}, "--format hf"),
        ({"norm": "layer", "activation": "relu"}, "a gated MLP with relu"),
    ],
)
def test_what_the_format_has_no_place_for(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        trtllm_fields(small_llama(**changes), 1, 1)


def test_layers_that_cannot_be_divided(tmp_path: Path) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", "Llama"))
    with pytest.raises(ModelError, match="2 layers cannot be divided over 4 pipeline stages"):
        written(source, tmp_path / "trt", pp=4)


def test_the_builder_where_it_is_and_where_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ExportOptions(source="s", max_rows=4, max_context=128)
    command = build_command(tmp_path / "trt", tmp_path / "out", options)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not run_builder(command)
    script = tmp_path / "trtllm-build"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    script.chmod(0o755)
    assert run_builder(command)
    said = (tmp_path / "said").read_text().split()
    assert said[:4] == ["--checkpoint_dir", str(tmp_path / "trt"), "--output_dir", str(tmp_path / "out")]
    assert said[4:] == ["--max_batch_size", "4", "--max_seq_len", "128"]
    script.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ModelError, match="failed with status 3"):
        run_builder(command)
