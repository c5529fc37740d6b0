"""An engine directory answers as its source does, is the same whenever it is made, and is refused with one bit off."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from exporting import exported, greedy, tensors_of, tiny_engine
from joined_shards import joined
from tiny_checkpoints import FAMILIES, write_checkpoint

from jitney.export.open import open_source
from jitney.runtime import EngineConfig
from jitney.runtime.errors import ModelError
from jitney.runtime.weights.blocks import BLOCK_BYTES
from jitney.runtime.weights.engine import EngineCheckpoint, EngineWeights
from jitney.runtime.weights.layout import expected_shapes
from jitney.runtime.weights.locate import open_backend
from jitney.runtime.weights.manifest import read_manifest

CONFIG = EngineConfig(device="cpu", max_rows=2, kv_cache_bytes=2**22, tune_process=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_answers_as_its_source(family: str, tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, family)
    assert greedy(engine) == greedy(tmp_path / "source")
    assert open_backend(engine).defaults == open_backend(tmp_path / "source").defaults


def test_the_tensors_are_the_sources_and_fused(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, "Qwen2")
    source = open_source(tmp_path / "source")
    weights = EngineWeights(engine, source.config)
    for name, shape in expected_shapes(source.config).items():
        assert weights.get(name).equal(source.weights.get(name)) and weights.shape(name) == shape
    stored = tensors_of(engine / "rank0.safetensors")
    assert "model.layers.1.self_attn.qkv_proj.bias" in stored
    assert stored["model.layers.0.mlp.gate_up_proj.weight"].shape == (96, 32)
    assert not any("q_proj" in name and "qkv" not in name for name in stored)


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Qwen3")
    for name, options in (("plain", {}), ("int8", {"quantize": "int8", "accept_quality": True})):
        for number in (1, 2):
            exported(source, tmp_path / f"{name}{number}", **options)
        first = {path.name: path.read_bytes() for path in (tmp_path / f"{name}1").iterdir()}
        assert first == {path.name: path.read_bytes() for path in (tmp_path / f"{name}2").iterdir()}


def accepts(directory: Path) -> None:
    """As a server does: open, read everything, wait for the checks."""
    backend = open_backend(directory)
    backend.open_step(CONFIG).close()


def test_every_files_flipped_byte_is_found_and_the_file_named(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path)
    accepts(engine)
    for path in sorted(engine.iterdir()):
        whole = path.read_bytes()
        size = len(whole)
        for at in sorted(
            {0, 1, size // 3, size // 2, size - 2, size - 1, *range(5, size, max(1, size // 12))}
        ):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(ModelError, match=path.name):
                accepts(engine)
        path.write_bytes(whole)
    accepts(engine)


def test_a_flip_says_which_block(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(bytes(BLOCK_BYTES) + b"tail")
    from jitney.runtime.weights.blocks import BlockCheck, block_digest

    digests = (block_digest(path, 0), block_digest(path, 1))
    BlockCheck([(path, digests)]).finish()
    with pytest.raises(ModelError, match=r"big: damaged: block 1, bytes 67,108,864 to"):
        BlockCheck([(path, (digests[0], digests[0]))]).finish()


@pytest.mark.parametrize("name", ["rank0.safetensors", "tokenizer.json", "engine.json"])
def test_a_file_that_is_missing_or_cut_short(name: str, tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path)
    whole = (engine / name).read_bytes()
    (engine / name).write_bytes(whole[:-3])
    with pytest.raises(ModelError, match=name):
        open_backend(engine)
    (engine / name).unlink()
    with pytest.raises(ModelError):
        open_backend(engine)


def test_a_file_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path)
    shutil.copytree(engine, tmp_path / "other")
    manifest = read_manifest(engine)
    files = tuple(file for file in manifest.files if file.name != "chat_template.jinja")
    from jitney.runtime.weights.manifest import sealed

    (engine / "engine.json").write_bytes(sealed(msgspec.structs.replace(manifest, files=files)))
    with pytest.raises(ModelError, match=r"chat_template.jinja: expected only files that engine.json names"):
        open_backend(engine)


@pytest.mark.parametrize(
    "quantize, ranks", [(None, 2), (None, 4), ("int8", 2), ("int8", 4), ("fp8", 4), ("int4", 2), ("int4", 4)]
)
def test_ranks_joined_are_the_whole(quantize: str | None, ranks: int, tmp_path: Path) -> None:
    """Two key-value heads: at four ranks each is held twice."""
    whole = tiny_engine(
        tmp_path, shape={"hidden_size": 128, "intermediate_size": 128}, quantize=quantize, accept_quality=True
    )
    exported(tmp_path / "source", tmp_path / "cut", quantize=quantize, tp=ranks, accept_quality=True)
    manifest = read_manifest(tmp_path / "cut")
    assert manifest.rank_config is not None
    parts = [EngineWeights(tmp_path / "cut", manifest.rank_config, rank) for rank in range(ranks)]
    weights = EngineWeights(whole, manifest.config)
    for name in weights.names():
        again = joined(manifest.config, name, [part.get(name) for part in parts])
        assert again.equal(weights.get(name)), name
    with pytest.raises(
        ModelError, match=r"made for \d ranks.*jitney export source .*cut --.*--force|--force"
    ):
        open_backend(tmp_path / "cut")


def test_an_engine_has_the_size_that_it_was_made_for(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, max_rows=3, max_context=64, max_batch_tokens=48)
    checkpoint = EngineCheckpoint(engine)
    assert isinstance(checkpoint, EngineCheckpoint) and checkpoint.context_length == 64
    step = checkpoint.open_step(EngineConfig(device="cpu", tune_process=False))
    assert step.capacity.max_rows == 3
    step.close()
    step = checkpoint.open_step(EngineConfig(device="cpu", tune_process=False, max_rows=2))
    assert step.capacity.max_rows == 2
    step.close()


def test_a_target_that_is_taken(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path)
    before = (engine / "engine.json").read_bytes()
    with pytest.raises(ModelError, match="exists already"):
        exported(tmp_path / "source", engine)
    exported(tmp_path / "source", engine, force=True, max_rows=2)
    assert (engine / "engine.json").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "source"]
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(ModelError, match="not a directory that an export made"):
        exported(tmp_path / "source", tmp_path / "letters", force=True)
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"
