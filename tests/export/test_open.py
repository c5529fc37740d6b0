"""Every format opens as the same thing: a shape, tensors by one set of names, a text side, what was left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_writing import write_gguf
from megatron_state import save, state
from tiny_checkpoints import FAMILIES, tiny_model, write_checkpoint
from written_megatron import unpack

from jitney.export.open import open_source
from jitney.export.source import Removed, Source
from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.errors import ModelError
from jitney.runtime.weights.layout import check_layout, expected_shapes


def assert_whole(source: Source, tensors: dict[str, Any]) -> None:
    check_layout(source.weights, source.config)
    for name in expected_shapes(source.config):
        assert torch.equal(source.weights.get(name), tensors[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_directories(family: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", family)
    source = open_source(directory)
    assert (source.name, source.format, source.path, source.stripped) == (
        "tiny",
        "huggingface",
        directory,
        (),
    )
    assert source.tokenizer is not None and 95 in source.generation.end_token_ids
    assert_whole(source, tiny_model(family).state_dict())


def test_sharded_ones(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", "Llama")
    (directory / "model.safetensors").unlink()
    tiny_model("Llama").save_pretrained(directory, max_shard_size="20KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    assert_whole(open_source(directory), tiny_model("Llama").state_dict())


def test_what_a_trainer_left_beside_the_weights_is_counted_and_never_opened(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", "Llama")
    for name, size in {
        "optimizer.pt": 1000,
        "scheduler.pt": 10,
        "trainer_state.json": 20,
        "training_args.bin": 30,
        "rng_state_0.pth": 5,
        "rng_state_1.pth": 6,
    }.items():
        (directory / name).write_bytes(b"c" * size)
    assert set(open_source(directory).stripped) == {
        Removed("optimizer", 1, 1000),
        Removed("training state", 3, 60),
        Removed("rng", 2, 11),
    }


def test_gguf(tmp_path: Path) -> None:
    model = tiny_model("Llama")
    source = open_source(write_gguf(tmp_path / "tiny.gguf", "llama", model))
    assert (source.name, source.format, source.path.name) == ("tiny", "gguf", "tiny.gguf")
    assert source.tokenizer is not None and source.tokenizer.chat_template == "<s>{{ messages[0].content }}"
    assert_whole(source, model.state_dict())


async def test_a_source_is_served_as_the_directory_is(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", "Llama")
    config = EngineConfig(dtype="float32", max_rows=2, kv_cache_bytes=2**22)
    texts = []
    for model in (directory, open_source(directory).backend()):
        async with DynamicEngine(model, config) as engine:
            [answer] = await engine.generate(["hello"], SamplingParams(temperature=0, max_tokens=16))
            texts.append(answer["text"])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("make", ["torch-qwen3-tp2", "dist-gpt3-tp2-stacked"])
def test_megatron(make: str, tmp_path: Path) -> None:
    source = open_source(unpack(make, tmp_path))
    check_layout(source.weights, source.config)
    assert source.tokenizer is None and source.name == make


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("", "nowhere/at/all", tmp_path / "absent"):
        with pytest.raises(ModelError, match="no such model"):
            open_source(name)


def test_opening_loads_no_torch(tmp_path: Path) -> None:
    hugging_face = write_checkpoint(tmp_path / "tiny", "Llama")
    megatron = save(tmp_path / "run", state())
    program = """
import sys
from jitney.export.open import open_source
for name in sys.argv[1:]:
    open_source(name)
sys.exit("torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program, str(hugging_face), str(megatron)])
    assert run.returncode == 0
