"""`jitney plan`: a card's memory by purpose, without a card, from a shape alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tiny_checkpoints import write_checkpoint
from typer.testing import Result

Jitney = Callable[..., Result]


def test_the_parts_of_a_known_shape(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    size = ("--memory", "70GiB", "--max-context", 9216, "--max-rows", 256)
    result = jitney("plan", "--random-shape", "qwen3-0.6b", *size, "--json", path)
    assert result.exit_code == 0, result.stderr
    parts = json.loads(path.read_text())["parts"]
    assert set(parts) >= {"weights", "KV pages", "sampling", "linear layers", "attention", "slots"}
    assert 4 * 257 * 151936 < parts["sampling"] < 230e6
    assert sum(parts.values()) <= 70 * 2**30
    assert "qwen3-0.6b" in result.stdout and "sampling" in result.stdout


def test_fp8_and_deterministic_mode_change_their_parts(jitney: Jitney, tmp_path: Path) -> None:
    def parts(*flags: object) -> dict[str, int]:
        path = tmp_path / "plan.json"
        arguments = ("--random-shape", "llama-8b", "--memory", "70GiB", "--max-context", 4096, *flags)
        assert jitney("plan", *arguments, "--json", path).exit_code == 0
        found: dict[str, int] = json.loads(path.read_text())["parts"]
        return found

    plain, narrow = parts(), parts("--quantize", "fp8")
    assert narrow["weights"] < 0.6 * plain["weights"]
    assert parts("--mode", "deterministic")["attention"] == 0 < plain["attention"]
    assert parts("--max-batch-tokens", 512)["linear layers"] < plain["linear layers"]


def test_what_does_not_fit_is_one_line_with_what_would(jitney: Jitney) -> None:
    result = jitney("plan", "--random-shape", "llama-8b", "--memory", "20GiB")
    assert result.exit_code == 2 and "would fit" in result.stderr and result.stderr.count("\n") == 1


def test_it_loads_no_torch() -> None:
    program = """
import sys
from jitney.streaming.cli import app
try:
    app(["plan", "--random-shape", "llama-1b", "--memory", "40GiB"])
except SystemExit as end:
    assert end.code == 0, end.code
print(sorted({"torch", "triton"} & set(sys.modules)), file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "[]\n")


def test_an_engines_own_sizes_are_planned_with(jitney: Jitney, tmp_path: Path) -> None:
    source, engine = write_checkpoint(tmp_path / "source", "Llama"), tmp_path / "engine"
    assert jitney("export", source, engine, "--max-rows", 4, "--max-context", 64).exit_code == 0
    result = jitney("plan", engine, "--memory", "2GiB")
    said = " ".join(result.stdout.split())  # the title is broken where the table ends
    assert result.exit_code == 0 and "4 rows of up to 64 tokens" in said
    result = jitney("plan", engine, "--memory", "2GiB", "--max-rows", 2, "--json", tmp_path / "no" / "x.json")
    assert "2 rows of up to 64 tokens" in " ".join(result.stdout.split())
    assert result.exit_code == 2 and "x.json" in result.stderr and "Traceback" not in result.stderr
