"""Settings of `jitney serve`: flags over variables over a file; no setting is made up, no secret shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from jitney.streaming.commands import serve as serve_module

Jitney = Callable[..., Result]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the command would have served, in place of serving it."""
    seen: dict[str, Any] = {}

    async def record(model: str, scripted: Any, config: Any, app: Any, address: Any) -> None:
        seen.update(app, **address, model=model, config=config)

    monkeypatch.setattr(serve_module, "_serve", record)
    monkeypatch.setattr(serve_module, "set_up", lambda form, level: seen.update(log=(form, level)))
    yield seen
    logging.getLogger("jitney").setLevel(logging.NOTSET)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "jitney.toml"
        path.write_text(text)
        return path

    return write


def test_flags_go_over_variables_over_the_file(
    jitney: Jitney, served: dict[str, Any], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(
        'model = "from-file"\nport = 1\ndrain-s = 1.5\nmax_sockets = 11\nallow-origin = ["https://a", "https://b"]\n'
        'log-format = "json"\nkv_cache_bytes = "2GiB"\n'
    )
    monkeypatch.setenv("JITNEY_PORT", "2")
    monkeypatch.setenv("JITNEY_MAX_SOCKETS", "22")
    monkeypatch.setenv("JITNEY_ALLOW_HOST", "one two")
    monkeypatch.setenv("JITNEY_CACHE", "/elsewhere")
    result = jitney("serve", "--config", path, "--port", "3")
    assert result.exit_code == 0, result.stderr
    assert (served["port"], served["max_sockets"], served["drain_s"]) == (3, 22, 1.5)
    assert served["allow_origins"] == ["https://a", "https://b"] and served["allow_hosts"] == ["one", "two"]
    assert served["model"] == "from-file" and served["log"] == ("json", "info")
    assert served["config"].kv_cache_bytes == 2 * 2**30


def test_the_file_may_be_named_by_a_variable_and_the_model_too(
    jitney: Jitney, served: dict[str, Any], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JITNEY_CONFIG", str(file('model = "from-file"\nport = 4\ninsecure-no-key = true\n')))
    monkeypatch.setenv("JITNEY_MODEL", "from-variable")
    assert jitney("serve", "--host", "0.0.0.0").exit_code == 0
    assert (served["model"], served["port"]) == ("from-variable", 4)
    assert jitney("serve", "from-line").exit_code == 0 and served["model"] == "from-line"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", "prot: no such setting; did you mean port?"),
        ("[server]\nport = 1", "server: no such setting"),
        ("[port]\nx = 1", "port: expected text or a number"),
        ("port = true", "port: expected text or a number"),
        ("port = [1]", "port: expected text or a number"),
        ("insecure-no-key = 1", "insecure_no_key: expected true or false"),
        ("port = 1979-05-27", "port: expected text or a number"),
        ("port = ", "expected a TOML file"),
        ("help = true", "help: no such setting"),
    ],
)
def test_a_bad_file_is_told_in_one_line(text: str, told: str, jitney: Jitney, served: Any, file: Any) -> None:
    result = jitney("serve", "--config", file(text))
    assert result.exit_code == 2 and result.stderr.startswith("jitney: ") and told in result.stderr
    assert result.stderr.count("\n") == 1 and not served


def test_a_value_out_of_its_range_is_refused_wherever_it_comes_from(
    jitney: Jitney, served: Any, file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'--port'" in jitney("serve", "--config", file("port = 70000")).stderr
    monkeypatch.setenv("JITNEY_PORT", "many")
    assert "--port" in jitney("serve").stderr
    assert not served


def test_a_variable_that_is_no_setting_is_refused(
    jitney: Jitney, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JITNEY_PROT", "1")
    result = jitney("serve")
    assert (
        result.exit_code == 2 and "JITNEY_PROT: no such setting; did you mean JITNEY_PORT?" in result.stderr
    )


def test_secrets_are_not_shown(
    jitney: Jitney, served: Any, file: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("JITNEY_API_KEY", "hunter2")
    result = jitney("serve", "--config", file('metrics-key = "hunter3"\nport = 5\n'))
    assert served["api_key"] == "hunter2" and served["metrics_key"] == "hunter3"
    assert "api_key=***" in caplog.text and "metrics_key=***" in caplog.text and "port=5" in caplog.text
    assert "allow_" not in caplog.text, "what was left as it is"
    wrong = jitney("serve", "--config", file('api-key = ["hunter4"]'))
    assert wrong.exit_code == 2
    assert "hunter" not in caplog.text + result.output + wrong.output + wrong.stderr


def test_keys_in_a_file_open_a_network_address(jitney: Jitney, served: Any, tmp_path: Path) -> None:
    assert jitney("serve", "--host", "0.0.0.0", "--keys", tmp_path / "keys.toml").exit_code == 0
    assert served["keys_file"] == tmp_path / "keys.toml"
