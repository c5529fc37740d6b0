"""`jitney bench`: the same requests for every engine, and every engine measured for real on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import Result

from jitney.streaming.commands.benches import offline
from jitney.streaming.commands.workload import Job, Lengths, lengths

Jitney = Callable[..., Result]

VOCAB, HIDDEN, INNER = 64, 32, 48


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A Llama of one layer with random weights, as a Hugging Face directory."""
    draw = np.random.default_rng(0)
    layer = "model.layers.0."
    shapes = {"model.embed_tokens": (VOCAB, HIDDEN)}
    shapes |= {f"{layer}self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {f"{layer}mlp.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")}
    shapes |= {f"{layer}mlp.down_proj": (HIDDEN, INNER)}
    tensors = {
        f"{name}.weight": draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()
    }
    norms = ("model.norm", f"{layer}input_layernorm", f"{layer}post_attention_layernorm")
    tensors |= {f"{name}.weight": np.ones(HIDDEN, np.float32) for name in norms}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    directory = tmp_path / "tiny"
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    letters = {
        letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())[:VOCAB])
    }
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


def job(**changes: object) -> Job:
    settings = {
        "engine": "dynamic",
        "model": "m",
        "num_requests": 50,
        "input": Lengths(3, 9),
        "output": Lengths(2, 5),
        "batch": 4,
        "repeats": 1,
        "seed": 7,
    }
    return Job(**(settings | changes))  # type: ignore[arg-type]


def test_every_engine_gets_the_same_requests() -> None:
    mine, yours = job(), job(engine="transformers", batch=8)
    assert mine.prompts(100) == yours.prompts(100)
    assert mine.output_lengths() == yours.output_lengths()
    assert mine.prompts(100) != job(seed=8).prompts(100)
    assert {len(prompt) for prompt in mine.prompts(100)} == set(range(3, 10))
    assert {token for prompt in mine.prompts(10) for token in prompt} == set(range(10))
    assert set(mine.output_lengths()) == {2, 3, 4, 5}


def test_lengths_are_a_number_or_a_range() -> None:
    assert lengths("128") == Lengths(128, 128) and lengths("32-256") == Lengths(32, 256)
    for wrong in ("0", "9-3", "many", "-4", "1-2-3", ""):
        with pytest.raises(typer.BadParameter, match="expected a length"):
            lengths(wrong)


def test_every_engine_is_measured(jitney: Jitney, tiny: Path, tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    workload = ("--requests", 5, "--input", "2-6", "--output", "3-7", "--batch", 2, "--repeats", 2)
    result = jitney("bench", "--model", tiny, *workload, "--json", report)
    assert result.exit_code == 0, result.stderr
    figures = json.loads(report.read_text())
    assert [row["engine"] for row in figures["results"]] == ["dynamic", "static", "transformers"]
    assert len({row["num_tokens"] for row in figures["results"]}) == 1
    assert all(len(row["seconds"]) == 2 and row["tokens_per_s"] > 0 for row in figures["results"])
    assert figures["workload"]["input"] == {"low": 2, "high": 6}
    for name in ("dynamic", "static", "transformers", "tokens/s"):
        assert name in result.stdout


def test_a_model_that_cannot_be_loaded_is_told_in_one_line(jitney: Jitney, tmp_path: Path) -> None:
    result = jitney("bench", "--engine", "dynamic", "--model", tmp_path / "absent")
    assert result.exit_code == 2
    assert result.stderr.startswith("jitney: dynamic: ") and "absent" in result.stderr.splitlines()[0]


def test_without_transformers_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jitney: Jitney
) -> None:
    monkeypatch.setattr(offline, "find_spec", lambda name: None)
    assert offline.chosen("all", None) == ["dynamic", "static"]
    assert "left out" in capsys.readouterr().err
    assert jitney("bench", "--engine", "transformers").stderr == "jitney: transformers is not installed\n"
    assert jitney("bench", "offline", "--against", "vllm").stderr == "jitney: vllm is not installed\n"
