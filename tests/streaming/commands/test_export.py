"""`jitney export` at its command line: what it says, what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_checkpoint
from typer.testing import CliRunner

from jitney.runtime.weights.manifest import read_manifest
from jitney.streaming.cli import app
from jitney.streaming.commands.export import _stoppable


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


def test_force_replaces_nothing_but_exports(tmp_path: Path) -> None:
    """Not a project with a config.json, not what is read, not a folder around it; a link stays one."""
    source, project = write_checkpoint(tmp_path / "in" / "source", "Llama"), tmp_path / "project"
    (project / "chapters").mkdir(parents=True)
    (project / "config.json").write_text("{}")
    (tmp_path / "in" / "config.json").write_text("{}")
    before = sorted(path for path in tmp_path.rglob("*"))
    for target, why in (
        (project, "chapters"),
        (source, "holds what is exported"),
        (source.parent, "holds what"),
    ):
        status, said = run(source, target, "--force")
        assert status == 2 and why in said, said
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert run(source, tmp_path / "v1")[0] == 0
    (tmp_path / "current").symlink_to(tmp_path / "v1")
    assert run(source, tmp_path / "current", "--force", "--max-rows", 3)[0] == 0
    assert (tmp_path / "current").is_symlink() and read_manifest(tmp_path / "v1").limits.max_rows == 3
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("quantize", ["int8", "int4", "fp8"])
@pytest.mark.parametrize(("weight", "value"), [("mlp.up_proj", float("nan")), ("self_attn.v_proj", 0.0)])
def test_no_number_is_refused_and_nothing_at_all_is_fine(
    tmp_path: Path, quantize: str, weight: str, value: float
) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors[f"model.layers.0.{weight}.weight"][:] = value
    save_file(tensors, file)
    status, said = run(source, tmp_path / "engine", "--quantize", quantize, "--accept-quality")
    if value:
        assert status == 2 and "the model's logits are no numbers" in said
        assert not (tmp_path / "engine").exists()
    else:
        assert status == 0 and read_manifest(tmp_path / "engine").quality is not None, said


def test_a_signal_takes_away_what_is_half_made() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, _stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is former
