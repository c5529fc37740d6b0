"""Checkpoints that real megatron-core wrote, tensor- and pipeline-parallel, in both formats: what jitney reads of them
gives Megatron's own logits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron_logprobs import CONFIG, logprobs
from tiny_checkpoints import write_tokenizer
from written_megatron import CASES, megatron_logits, unpack

from jitney.export.open import open_source
from jitney.export.source import Source
from jitney.runtime import DynamicEngine, SamplingParams


def largest_difference(source: Source, directory: Path) -> float:
    tokens, logits = megatron_logits(directory)
    theirs = torch.from_numpy(logits)[:-1, : source.config.vocab_size].log_softmax(-1)
    return (logprobs(source.config, source.weights, tokens) - theirs).abs().max().item()


def test_every_split_and_layout_is_there() -> None:
    assert {f"{form}-llama-{split}" for form in ("torch",) for split in ("tp1", "tp2", "tp4")} <= set(CASES)
    assert {case.split("-")[0] for case in CASES if "pp2" in case} == {"torch", "dist"}
    assert {case.rsplit("-", 1)[1] for case in CASES if case.startswith("dist")} >= {"stacked", "numbered"}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_megatrons(case: str, tmp_path: Path) -> None:
    directory = unpack(case, tmp_path)
    source = open_source(directory)
    assert source.format == ("megatron-torch" if case.startswith("torch") else "megatron-torch_dist")
    assert source.config.vocab_size == 90
    assert largest_difference(source, directory) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_what_training_needs_is_stripped_and_counted(case: str, tmp_path: Path) -> None:
    directory = unpack(case, tmp_path)
    source = open_source(directory)
    removed = {each.group: each for each in source.stripped}
    assert removed["optimizer"].num_bytes >= 2 * 4 * 10_000
    assert removed["rng"].num_bytes > 5_000
    assert removed["extra state"].num_items > 0
    kept = 4 * sum(source.weights.get(name).numel() for name in source.weights.names())
    stored = sum(path.stat().st_size for path in directory.rglob("*"))
    assert kept + sum(each.num_bytes for each in source.stripped) < stored


def test_one_wrong_row_would_be_seen(tmp_path: Path) -> None:
    directory = unpack("torch-llama-tp2", tmp_path)
    source = open_source(directory)
    path = directory / "iter_0000010" / "mp_rank_01" / "model_optim_rng.pt"
    piece = source.weights._tensors["decoder.layers.1.mlp.linear_fc1.weight"].pieces[2].tensor  # type: ignore[attr-defined]
    assert piece.path == path
    with path.open("r+b") as file:
        file.seek(piece.start)
        file.write(torch.full((32,), 1.0).numpy().tobytes())
    assert largest_difference(open_source(directory), directory) > 1e-3


async def test_a_megatron_model_is_served_from_end_to_end(tmp_path: Path) -> None:
    """Text in, text out, with a tokenizer that lies beside the checkpoint; every first token is Megatron's choice."""
    directory = unpack("dist-llama-tp2pp2-numbered", tmp_path)
    write_tokenizer(directory)
    source = open_source(directory)
    assert source.config.vocab_size == 96 and source.name == directory.name
    tokens, logits = megatron_logits(directory)
    best = logits[:, :96].argmax(-1).tolist()
    async with DynamicEngine(source.backend(), CONFIG) as engine:
        prompts = [tokens[:length] for length in range(1, len(tokens) + 1)]
        answers = await engine.generate(prompts, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
        assert [answer["tokens"][0] for answer in answers] == best
        [answer] = await engine.generate(["hello"], SamplingParams(temperature=0, max_tokens=8))
        assert answer["text"] == source.backend().tokenizer.decode(answer["tokens"])


@pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="megatron-core is not installed")
@pytest.mark.large
@pytest.mark.timeout(600)
def test_freshly_written_ones_too(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "support" / "write_megatron.py"
    for case in ("dist-llama-tp2-numbered", "torch-gpt3-tp2pp2"):
        subprocess.run([sys.executable, str(script), str(tmp_path), case], check=True, capture_output=True)
        import tarfile

        with tarfile.open(tmp_path / f"{case}.tar.xz") as archive:
            archive.extractall(tmp_path / case, filter="data")
        assert largest_difference(open_source(tmp_path / case), tmp_path / case) < 1e-4
