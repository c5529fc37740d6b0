"""`jitney export` at its command line: what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoints import write_checkpoint
from typer.testing import CliRunner

from jitney.runtime.weights.manifest import read_manifest
from jitney.streaming.cli import app


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, words)])
    return result.exit_code, result.stderr


def test_an_engine(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    status, said = run(source, tmp_path / "engine", "--quantize", "int8", "--max-rows", 4)
    assert status == 0, said
    assert "weights" in said and "perplexity" in said and "mean KL" in said
    manifest = read_manifest(tmp_path / "engine")
    assert manifest.source == str(source) and manifest.options == ("--quantize", "int8", "--max-rows", "4")
    status, said = run(source, tmp_path / "engine")
    assert status == 2 and "exists already" in said and "jitney: " in said
    assert run(source, tmp_path / "engine", "--force")[0] == 0


def test_a_hugging_face_directory(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Qwen2")
    assert run(source, tmp_path / "hf", "--format", "hf")[0] == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "qwen2"


def test_a_tensorrt_checkpoint_without_its_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    monkeypatch.setenv("PATH", str(tmp_path))
    status, said = run(source, tmp_path / "trt", "--format", "trtllm", "--tp", 2, "--pp", 2)
    assert status == 0 and "trtllm-build is not installed here, so no TensorRT engine was built" in said
    assert len(list((tmp_path / "trt").glob("rank*.safetensors"))) == 4


@pytest.mark.parametrize(
    "words, named",
    [
        (["--pp", "2"], "--pp"),
        (["--tp", "2", "--format", "hf"], "--tp"),
        (["--kernels", "--format", "hf"], "--kernels"),
        (["--tp", "3"], "3 tensor-parallel ranks"),
        (["--quantize", "int4", "--max-kl", "0"], "loses too much"),
    ],
)
def test_what_is_refused(words: list[str], named: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    status, said = run(source, tmp_path / "engine", *words)
    assert status == 2 and named in said and not (tmp_path / "engine").exists()
