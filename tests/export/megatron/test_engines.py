"""From a checkpoint that real megatron-core wrote to an engine directory to logits: still Megatron's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron_logprobs import logprobs
from tiny_checkpoints import write_tokenizer
from written_megatron import CASES, megatron_logits, unpack

from jitney.export.builder import EngineBuilder
from jitney.export.engine_directory import export_engine
from jitney.export.open import open_source
from jitney.export.options import ExportOptions
from jitney.runtime.errors import ModelError
from jitney.runtime.weights.checkpoint import Checkpoint
from jitney.runtime.weights.locate import open_backend


@pytest.mark.parametrize("case", CASES)
def test_an_engine_of_every_checkpoint(case: str, tmp_path: Path) -> None:
    directory = unpack(case, tmp_path)
    write_tokenizer(directory)
    source = open_source(directory)
    target = tmp_path / "engine"
    manifest = export_engine(source, target, ExportOptions(source=case), lambda *_: None)
    assert manifest.removed["optimizer"] > 80_000 and manifest.removed["rng"] > 5_000
    engine = open_backend(target)
    assert isinstance(engine, Checkpoint) and engine.config == source.config
    tokens, logits = megatron_logits(directory)
    theirs = torch.from_numpy(logits)[:-1, : engine.config.vocab_size].log_softmax(-1)
    assert (logprobs(engine.config, engine.weights, tokens) - theirs).abs().max() < 1e-4


def test_the_command_and_the_builder_take_a_tokenizer(tmp_path: Path) -> None:
    directory, words = unpack("torch-llama-tp2", tmp_path), tmp_path / "words"
    words.mkdir()
    write_tokenizer(words)
    program = "from jitney.streaming.cli import main; main()"
    command = [sys.executable, "-c", program, "export", str(directory), str(tmp_path / "a")]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode != 0 and "the checkpoint has no tokenizer" in refused.stderr
    done = subprocess.run([*command, "--tokenizer", str(words)], capture_output=True, text=True)
    assert done.returncode == 0 and "left out: optimizer:" in done.stderr, done.stderr
    EngineBuilder.build_and_save_engine(tmp_path / "b", directory, tokenizer=words)
    for name in ("rank0.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_training_checkpoint_is_not_served_before_it_is_exported(tmp_path: Path) -> None:
    directory = unpack("torch-llama-tp2", tmp_path)
    with pytest.raises(ModelError, match=f"jitney export {directory} ENGINE"):
        open_backend(directory)
    write_tokenizer(directory)
    export_engine(open_source(directory), tmp_path / "engine", ExportOptions(source="x"), lambda *_: None)
    with pytest.raises(ModelError, match="found an engine directory"):
        open_source(tmp_path / "engine")
