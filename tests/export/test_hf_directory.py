"""`--format hf`: transformers on what is written gives its logits on the source, to the bit; jitney reads it too."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import PROMPTS, greedy, silent, tensors_of, tiny_engine
from tiny_checkpoints import write_checkpoint

from jitney.export.hf_directory import export_huggingface
from jitney.export.open import open_source
from jitney.export.options import ExportOptions
from jitney.runtime.errors import ModelError
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.weights.locate import open_backend
from jitney.runtime.weights.safetensors_weights import STORED_BYTES, SafetensorsWeights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "mistral": ("Mistral", {"sliding_window": 12}),
    "mistral-whole": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "bfloat16": ("Llama", {"dtype": "bfloat16"}),
}
TOKENS = torch.tensor([[(7 * i * i + 3 * i + 1) % 96 for i in range(40)]])


def written(source: Path, target: Path, **options: Any) -> Path:
    export_huggingface(open_source(source), target, ExportOptions(source="source", **options), silent)
    return target


def logits(directory: Path, **options: Any) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_gives_the_logits_of_the_source(shape: str, tmp_path: Path) -> None:
    family, options = SHAPES[shape]
    source = write_checkpoint(tmp_path / "source", family, **options)
    target = written(source, tmp_path / "hf")
    assert logits(target).equal(logits(source))
    ours, theirs = open_backend(target), open_backend(source)
    assert ours.config == theirs.config and ours.defaults == theirs.defaults  # type: ignore[attr-defined]
    assert greedy(target, dtype="float32") == greedy(source, dtype="float32")


@pytest.mark.parametrize("quantize", ["int8", "int4", "fp8"])
def test_a_narrowed_directory_is_read_and_is_the_engine(quantize: str, tmp_path: Path) -> None:
    """Both were narrowed alike, but for the output layer of int8."""
    engine = tiny_engine(tmp_path, "Qwen3", quantize=quantize, accept_quality=True)
    target = written(tmp_path / "source", tmp_path / "hf", quantize=quantize, accept_quality=True)
    assert open_backend(target).config.quantization == quantize  # type: ignore[attr-defined]
    if quantize != "int8":
        assert greedy(target, dtype="float32") == greedy(engine, dtype="float32")
    read = open_backend(target).weights  # type: ignore[attr-defined]
    made = open_backend(engine).weights  # type: ignore[attr-defined]
    for name in read.names():
        if name not in ("lm_head.weight", "model.norm.weight"):
            assert read.get(name).equal(made.get(name)), name


def test_metadata_as_other_engines_read_it(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    stored = {}
    for quantize in ("int8", "int4", "fp8"):
        target = written(source, tmp_path / quantize, quantize=quantize, accept_quality=True)
        fields = json.loads((target / "config.json").read_text())["quantization_config"]
        assert fields["quant_method"] == "compressed-tensors" and fields["ignore"] == ["lm_head"]
        weights = SafetensorsWeights(target, STORED_BYTES)
        stored[quantize] = {name: (weights.dtype(name), weights.shape(name)) for name in weights.names()}
        group = fields["config_groups"]["group_0"]
        assert (group["weights"]["num_bits"], fields["format"]) in (
            (8, "int-quantized"),
            (4, "pack-quantized"),
            (8, "float-quantized"),
        )
        assert (fields["kv_cache_scheme"] is not None) == (quantize == "fp8")
        assert (group["input_activations"] is not None) == (quantize == "int8")
    down = "model.layers.1.mlp.down_proj."
    assert stored["int8"][down + "weight"] == ("I8", (32, 48))
    assert stored["int8"][down + "weight_scale"] == ("F32", (32, 1))
    assert stored["int4"][down + "weight_packed"] == ("I32", (32, 6))
    assert stored["int4"][down + "weight_scale"] == ("F32", (32, 3))
    assert stored["int4"][down + "weight_shape"] == ("I64", (2,))
    assert stored["fp8"][down + "weight"] == ("F8_E4M3", (32, 48))
    assert stored["fp8"]["model.layers.0.self_attn.k_scale"] == ("F32", (1,))
    shapes = tensors_of(next((tmp_path / "int4").glob("model-00002*")))
    assert shapes[down + "weight_shape"].tolist() == [32, 48]
    scales = tensors_of(next((tmp_path / "fp8").glob("model-00002*")))
    assert len(scales) == 4 and all(0 < float(scale) != 1.0 for scale in scales.values())


def test_a_large_model_is_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.export.hf_directory.SHARD_BYTES", 20_000)
    source = write_checkpoint(tmp_path / "source", "Llama")
    target = written(source, tmp_path / "hf")
    assert len(list(target.glob("model-*.safetensors"))) > 2
    assert logits(target).equal(logits(source))


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"norm": "layer"}, "LayerNorm"),
        ({"gated_mlp": False, "learned_positions": True}, "a plain MLP, learned positions"),
        ({"rotary_fraction": 0.25}, "partly rotary"),
        ({"qk_norm": True, "mlp_bias": True}, "qk_norm=True"),
        ({"sliding_window": 8, "attention_out_bias": True}, "window=8"),
    ],
)
def test_what_no_family_has(changes: dict[str, Any], reason: str) -> None:
    from tiny_models import small_llama

    from jitney.export.hf_config import hf_fields

    config: ModelConfig = small_llama(**changes)
    with pytest.raises(ModelError, match=reason):
        hf_fields(config)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"quant_method": "gptq"}, "quant_method"),
        ({"format": "nvfp4-pack-quantized"}, "format.*is not served"),
        ({"config_groups": {}}, "config_groups"),
        ({"config_groups": {"a": {"weights": {"num_bits": 4}}}}, "weights.type"),
        ([], "quant_method"),
    ],
)
def test_other_quantisations_are_refused(fields: Any, reason: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    target = written(source, tmp_path / "hf", quantize="int8", accept_quality=True)
    content = json.loads((target / "config.json").read_text())
    given = content["quantization_config"]
    content["quantization_config"] = given | fields if isinstance(fields, dict) else fields
    (target / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=reason):
        open_backend(target)


def test_int8_is_computed_as_int8_and_as_floats(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    target = written(source, tmp_path / "hf", quantize="int8", accept_quality=True)
    assert [len(tokens) for tokens in greedy(target)] == [16] * len(PROMPTS)


def test_transformers_generates_from_it_as_from_the_source(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    path = source / "generation_config.json"
    given = json.loads(path.read_text()) if path.is_file() else {}
    wanted = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "bos_token_id": 1, "pad_token_id": 0}
    path.write_text(json.dumps({**given, **wanted}))
    load = transformers.GenerationConfig.from_pretrained
    before, after = load(source), load(written(source, tmp_path / "out"))
    assert {name: getattr(after, name) for name in wanted} == wanted
    assert before.eos_token_id in after.eos_token_id, "and what the tokenizer ends with"
