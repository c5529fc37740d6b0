"""From a checkpoint that real megatron-core wrote to an engine directory to logits: still Megatron's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron_logprobs import logprobs
from tiny_checkpoints import write_tokenizer
from written_megatron import CASES, megatron_logits, unpack

from jitney.export.engine_directory import export_engine
from jitney.export.open import open_source
from jitney.export.options import ExportOptions
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
