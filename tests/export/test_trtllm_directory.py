"""`--format trtllm`: the names, shapes and mapping of TensorRT-LLM's checkpoint, rank by rank."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import silent, tensors_of
from tiny_checkpoints import write_checkpoint
from tiny_models import TensorWeights, small_llama
from transformers import AutoModelForCausalLM, DynamicCache

from jitney.export.contents import TEXT, _windows
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


SCALES = ("weights_scaling_factor", "activation_scaling_factor")


def test_fp8_is_what_was_measured(tmp_path: Path) -> None:
    """transformers, with matrices, inputs and cache rounded by the checkpoint's scales, has the measured perplexity."""
    path = write_checkpoint(tmp_path / "source", "Llama", tie_word_embeddings=True)
    source, options = open_source(path), ExportOptions(source="source", quantize="fp8")
    contents = export_trtllm(source, tmp_path / "trt", options, silent)
    rank = tensors_of(tmp_path / "trt" / "rank0.safetensors")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    cache_scales = []
    for number, layer in enumerate(model.model.layers):
        prefix = f"transformer.layers.{number}."
        cache_scales.append(float(rank[prefix + "attention.kv_cache_scaling_factor"]))
        attention, mlp = layer.self_attn, layer.mlp
        narrowed_linears(rank, prefix + "attention.qkv", attention.q_proj, attention.k_proj, attention.v_proj)
        narrowed_linears(rank, prefix + "attention.dense", attention.o_proj)
        for theirs, ours in (("fc", mlp.gate_proj), ("gate", mlp.up_proj), ("proj", mlp.down_proj)):
            narrowed_linears(rank, prefix + "mlp." + theirs, ours)
    windows = _windows(source, TEXT)[1::2]
    with torch.inference_mode():
        logits = model(windows, past_key_values=RoundedCache(cache_scales)).logits[:, :-1]
    surprise = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert contents.quality is not None and 0 < contents.quality.kl < 1e-3
    assert math.exp(surprise) == pytest.approx(contents.quality.perplexity, rel=1e-5)
    config = json.loads((tmp_path / "trt" / "config.json").read_text())
    assert config["quantization"] == {
        "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"],
    }  # fmt: skip


def narrowed_linears(rank: dict[str, torch.Tensor], name: str, *linears: torch.nn.Linear) -> None:
    """Give linears, one above the other in the checkpoint, its matrix, and what they are fed its rounding."""
    weight, (by, inputs_by) = rank[name + ".weight"], (rank[f"{name}.{kind}"] for kind in SCALES)
    assert weight.dtype == torch.float8_e4m3fn and by.shape == inputs_by.shape == (1,)
    parts = (weight.float() * by).split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data.copy_(part)
        linear.register_forward_pre_hook(lambda module, given: (in_eight_bits(given[0], inputs_by),))


def in_eight_bits(x: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


class RoundedCache(DynamicCache):
    def __init__(self, scales: list[float]) -> None:
        super().__init__()
        self.scales = scales

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *rest: Any, **more: Any
    ) -> Any:
        rounded = (in_eight_bits(x, self.scales[layer_idx]) for x in (keys, values))
        return super().update(*rounded, layer_idx, *rest, **more)


def test_fp8_over_ranks_and_stages(tmp_path: Path) -> None:
    """Parts of one matrix, with its scales on every rank of the stage that has its layer."""
    source = open_source(write_checkpoint(tmp_path / "source", "Llama", num_hidden_layers=4))
    [whole] = written(source, tmp_path / "one", quantize="fp8")
    ranks = written(source, tmp_path / "trt", quantize="fp8", tp=2, pp=2)
    scaled = [name for name in whole if "scaling_factor" in name]
    assert len(scaled) == 4 * (2 * 5 + 1)
    for name in scaled:
        layer, rest = name.removeprefix("transformer.layers.").split(".", 1)
        stage, local = divmod(int(layer), 2)
        for part in (0, 1):
            assert ranks[2 * stage + part][f"transformer.layers.{local}.{rest}"].equal(whole[name])
    proj = "transformer.layers.{}.mlp.proj.weight"
    halves = [ranks[2 + part][proj.format(1)].view(torch.uint8) for part in (0, 1)]
    assert torch.cat(halves, 1).equal(whole[proj.format(3)].view(torch.uint8))


def test_fp8_that_loses_too_much_is_refused(tmp_path: Path) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", "Llama"))
    with pytest.raises(ModelError, match="fp8 loses too much"):
        written(source, tmp_path / "trt", quantize="fp8", max_kl=0.0)
    assert not (tmp_path / "trt").exists()


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"qk_norm": True}, "norms of queries and keys"),
        ({"sliding_window": 8}, "sliding windows"),
        ({"quantization": "int8"}, "our int8 weights"),
        ({"quantization": "int4"}, "our int4 weights"),
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
