"""Directories: every family, sharded and whole, and what is broken in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import FAMILIES, tiny_model, write_tokenizer

from jitney.runtime.backend import GenerationDefaults
from jitney.runtime.errors import ModelError
from jitney.runtime.weights.huggingface import open_directory
from jitney.runtime.weights.layout import expected_shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family(family: str, directories: dict[str, Path]) -> None:
    opened = open_directory(directories[family], "tiny")
    state = tiny_model(family).state_dict()
    assert set(expected_shapes(opened.config)) == set(opened.weights.names()) == set(state)
    for name, tensor in state.items():
        assert torch.equal(opened.weights.get(name), tensor)
        assert opened.weights.shape(name) == tuple(tensor.shape)
    assert (opened.name, opened.context_length, opened.vocab_size) == ("tiny", 128, 96)


@pytest.mark.parametrize(
    ("family", "options"),
    [("Llama", {"attention_bias": True, "mlp_bias": True}), ("Qwen2", {"tie_word_embeddings": True})],
)
def test_biases_and_tied_embeddings(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    tiny_model(family, **options).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    opened = open_directory(tmp_path, "tiny")
    assert set(expected_shapes(opened.config)) == set(opened.weights.names())


def test_shards(tmp_path: Path, directories: dict[str, Path]) -> None:
    model = tiny_model("Llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    write_tokenizer(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded, whole = (open_directory(path, "x").weights for path in (tmp_path, directories["Llama"]))
    for name in whole.names():
        assert torch.equal(sharded.get(name), whole.get(name))


@pytest.fixture
def directory(tmp_path: Path, directories: dict[str, Path]) -> Path:
    target = tmp_path / "model"
    shutil.copytree(directories["Llama"], target)
    return target


def edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


def refused(directory: Path) -> str:
    with pytest.raises(ModelError) as error:
        open_directory(directory, "x")
    return str(error.value)


def test_text_side(directory: Path) -> None:
    opened = open_directory(directory, "x")
    assert opened.tokenizer.encode("!") == [94, 0]
    assert opened.tokenizer.encode_chat([{"role": "user", "content": "a"}])
    assert opened.defaults.end_token_ids == (2, 95)


def test_generation_config(directory: Path) -> None:
    edit(
        directory / "generation_config.json",
        eos_token_id=[7, 95],
        temperature=0.6,
        top_p=0.9,
        top_k=20,
        repetition_penalty=1.1,
    )
    want = GenerationDefaults(
        end_token_ids=(7, 95, 2), temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1
    )
    assert open_directory(directory, "x").defaults == want


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"top_p": 2},
        {"top_k": 0.5},
        {"eos_token_id": -1},
        {"eos_token_id": [9999]},
    ],
)
def test_a_wrong_generation_config_is_named(directory: Path, fields: dict[str, Any]) -> None:
    edit(directory / "generation_config.json", **fields)
    assert next(iter(fields)) in refused(directory)


def test_a_tensor_of_another_shape(directory: Path) -> None:
    edit(directory / "config.json", intermediate_size=64)
    assert "mlp.gate_proj.weight: expected (64, 32), found (48, 32)" in refused(directory)


def test_a_missing_tensor(directory: Path) -> None:
    edit(directory / "config.json", num_hidden_layers=3)
    assert "model.layers.2.self_attn.q_proj.weight of shape (32, 32) is missing" in refused(directory)


def test_an_unknown_tensor(directory: Path) -> None:
    edit(directory / "config.json", num_hidden_layers=1)
    assert "model.layers.1." in refused(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert name in refused(directory)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", ["", "[]", "{", "\ufeff{}", "[" * 100_000, '{"a": \udcff}'])
def test_a_file_that_is_no_json_object(directory: Path, name: str, content: str) -> None:
    (directory / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert name in refused(directory)


def test_a_template_of_its_own_file_wins(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    tokenizer = open_directory(directory, "x").tokenizer
    assert tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "abc"}])) == "abc"


def test_a_broken_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{% if %}")
    assert "the chat template does not compile" in refused(directory)


def test_named_templates(directory: Path) -> None:
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    edit(directory / "tokenizer_config.json", chat_template=templates)
    tokenizer = open_directory(directory, "x").tokenizer
    assert tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "abc"}])) == "d"
