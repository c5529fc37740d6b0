"""`jitney` itself: version, help, start-up, and how a command's failure is told."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from jitney.runtime.errors import InvalidField
from jitney.streaming.cli import Commands, app

MAIN = "from jitney.streaming.cli import main; main()"


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"jitney {metadata.version('jitney')}\n")


@pytest.mark.parametrize("command", ["chat", "serve", "generate", "bench"])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"jitney {command}" in result.stdout or command in result.stdout


def test_help_loads_neither_torch_nor_the_engine() -> None:
    program = f"""
import sys
sys.argv = ["jitney", "--help"]
try:
    {MAIN}
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "numpy", "tokenizers", "starlette", "uvicorn", "jitney.runtime.engines.dynamic"}}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "[]\n")


@pytest.mark.parametrize("arguments", [["chat", "--no-such-option"], ["no-such-command"], ["chat", "a", "b"]])
def test_unknown_options_and_commands_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_an_error_is_one_line_on_standard_error_and_status_2() -> None:
    failing = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @failing.callback()
    def _options() -> None: ...

    @failing.command()
    def fail() -> Any:
        raise InvalidField("temperature", "a number", "hot")

    result = CliRunner().invoke(failing, ["fail"])
    expected = "jitney: temperature: expected a number, got 'hot' (str)\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", expected)


def test_a_broken_script_is_told_in_one_line(tmp_path: Any) -> None:
    script = tmp_path / "script.toml"
    script.write_text("reply = 3")
    result = CliRunner().invoke(app, ["chat", "--scripted", str(script)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"jitney: {script}") and result.stderr.count("\n") == 1


def test_an_unknown_model_is_told_in_one_line() -> None:
    result = CliRunner().invoke(app, ["chat", "no such model"])
    assert result.exit_code == 2
    assert result.stderr.startswith("jitney: no such model") and result.stderr.count("\n") == 1
