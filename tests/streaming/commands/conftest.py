"""The command line over a script: every command runs for real, in milliseconds, without a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jitney.streaming.cli import app

SCRIPT = """
context_length = 4096

[[reply]]
match = "capital"
text = "Paris."

[[reply]]
match = "sky"
text = "Rayleigh\\nscattering."

[[reply]]
match = "broken"
text = "half of an answer"
fail_after = 4

[[reply]]
match = "deadly"
fail_after = 0
fault = "worker"

[[reply]]
match = "long"
text = "one two %s the end"
token_s = 0.02
""" % ("and so on " * 200)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.toml"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def jitney(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """`jitney(*arguments, input=...)` as a shell would run it, standard input not being a terminal. What a command
    logs is its process's affair, and here ends with the test."""
    monkeypatch.delenv("JITNEY_API_KEY", raising=False)
    logger = logging.getLogger("jitney")
    level = logger.level

    def run(*arguments: object, input: str = "") -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)

    yield run
    logger.setLevel(level)
