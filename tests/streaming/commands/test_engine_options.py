"""Options of the engine: the same on every command that opens one, and each reaches its configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from jitney.streaming.commands import chat as chat_module
from jitney.streaming.commands import generate as generate_module
from jitney.streaming.commands import serve as serve_module
from jitney.streaming.commands.engine_options import EngineOptions
from jitney.streaming.commands.opening import loading

Jitney = Callable[..., Result]

FLAGS = (
    "--device", "cpu", "--dtype", "float32", "--quantize", "fp8", "--kv-dtype", "fp8", "--mode", "deterministic",
    "--load-format", "random", "--memory", "2GiB", "--max-batch-tokens", "512", "--run-ahead", "3",
)  # fmt: skip
FIELDS = {
    "device": "cpu", "dtype": "float32", "quantize": "fp8", "kv_dtype": "fp8", "mode": "deterministic",
    "load_format": "random", "memory_bytes": 2**31, "max_batch_tokens": 512, "run_ahead": 3,
}  # fmt: skip


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that commands would have opened an engine with."""
    seen: list[Any] = []

    def refuse(model: str, scripted: Any, config: Any) -> None:
        seen.append(config)
        raise SystemExit(0)

    async def record(model: str, scripted: Any, config: Any, app: Any, address: Any) -> None:
        seen.append(config)

    monkeypatch.setattr(chat_module, "opened", refuse)
    monkeypatch.setattr(generate_module, "opened", refuse)
    monkeypatch.setattr(serve_module, "_serve", record)
    monkeypatch.setattr(serve_module, "set_up", lambda form, level: None)
    return seen


@pytest.mark.parametrize("command", ["serve", "chat", "generate"])
def test_each_option_reaches_the_configuration(
    jitney: Jitney, opened: list[Any], tmp_path: Path, command: str
) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"prompt": "x"}\n')
    files = [lines, tmp_path / "out.jsonl"] if command == "generate" else []
    result = jitney(command, *files, *FLAGS)
    assert result.exit_code == 0, result.stderr
    assert {name: getattr(opened[0], name) for name in FIELDS} == FIELDS
    assert opened[0].max_rows is None


def test_variables_set_them_too(
    jitney: Jitney, opened: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JITNEY_KV_DTYPE", "fp8")
    monkeypatch.setenv("JITNEY_MEMORY", "3GiB")
    settings = tmp_path / "jitney.toml"
    settings.write_text('memory = "1GiB"\nrun-ahead = 4\n')
    assert jitney("serve", "--config", settings).exit_code == 0
    assert (opened[0].kv_dtype, opened[0].memory_bytes, opened[0].run_ahead) == ("fp8", 3 * 2**30, 4)


def test_a_server_and_an_engine_of_ones_own_exclude_each_other(jitney: Jitney) -> None:
    result = jitney("chat", "--url", "http://127.0.0.1:1", "--kv-dtype", "fp8")
    assert result.exit_code == 2 and "--max-batch-tokens" in result.stderr


def test_defaults_are_those_of_the_configuration() -> None:
    assert EngineOptions().config() == type(EngineOptions().config())()


def test_warnings_while_loading_are_printed_and_the_level_is_put_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("jitney")
    level = logger.level
    monkeypatch.setattr(logger, "propagate", False)
    with loading("m"):
        logger.info("captured 3 of 9 graphs")
        logger.warning("no compiler")
        assert logger.isEnabledFor(logging.INFO)
    assert logger.level == level and not logger.handlers
    assert capsys.readouterr().err.splitlines() == ["no compiler"]
