"""Keys: what their file may say, how it is read again, and what a lookup finds."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from jitney.runtime.errors import InvalidField, JitneyError
from jitney.streaming.access.keys import RELOAD_S, Key, KeyRing, digest_of


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def entry(name: str, secret: str, **fields: Any) -> str:
    lines = [f'name = "{name}"', f'sha256 = "{digest_of(secret)}"']
    lines += [f"{field} = {value}" for field, value in fields.items()]
    return "\n".join(["[[key]]", *lines, ""])


def write(path: Path, text: str) -> None:
    """With a time stamp that certainly differs."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_key_is_found_by_its_secret(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(path, entry("a", "one", concurrency=3, trusted="true") + entry("b", "two"))
    ring = KeyRing([], path, Clock())
    found = ring.find("one")
    assert found is not None and (found.name, found.concurrency, found.trusted) == ("a", 3, True)
    assert ring.find("on") is ring.find("") is ring.find("one\0") is ring.find("\ud800") is None
    assert ring.find("x" * 10**6) is None
    assert "one" not in path.read_text()


def test_a_ring_without_a_file_and_keys_is_open_and_an_empty_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(path, "")
    assert KeyRing([], None, Clock()).is_open
    assert not KeyRing([], path, Clock()).is_open


BAD = {
    "key = 1": "expected .* tables",
    "[[key]]\nname = 1": "key 1: Expected `str`",
    "[[key]]": "key 1: .*missing required field `name`",
    '[[key]]\nname = "a"': "key 1: sha256: expected 64",
    '[[key]]\nname = "a b"\nsha256 = "x"': "key 1: name: expected",
    entry("a", "one", wibble=1): "wibble",
    entry("a", "one", concurrency=0): "concurrency: expected a positive",
    entry("a", "one", concurrency="true"): "Expected `int",
    entry("a", "one", highest_priority=101): "highest_priority: expected",
    entry("a", "one", longest_deadline_s=-1): "longest_deadline_s",
    entry("a", "one") * 2: "name of the key 'a' is there twice",
    entry("a", "one") + entry("b", "one"): "sha256 of the key 'a' is there twice",
    "other = 1": "nothing else, got other",
    "[[key": "expected a TOML file",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_bad_file_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(JitneyError, match=BAD[text]) as refused:
        KeyRing([], path, Clock())
    assert "keys.toml" in str(refused.value)


@pytest.mark.parametrize("field", ["concurrency", "tokens_per_minute", "connections", "longest_deadline_s"])
@pytest.mark.parametrize("value", ["4", True, 0, -1.5, float("nan"), [3]])
def test_a_limit_that_is_no_positive_number_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidField, match=f"{field}: expected a positive number"):
        Key(name="a", sha256="0" * 64, **{field: value})


def test_a_digest_in_an_error_is_not_shown() -> None:
    with pytest.raises(InvalidField) as refused:
        Key(name="a", sha256="secret by mistake")
    assert "secret" not in str(refused.value)


def test_the_file_is_read_again_and_tells_who_was_revoked(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.toml", Clock()
    write(path, entry("a", "one") + entry("b", "two") + entry("c", "three"))
    ring = KeyRing([], path, clock)
    write(path, entry("a", "one", concurrency=1) + entry("b", "new"))
    assert ring.refresh() == set() and ring.find("two") is not None  # not looked at yet
    clock.now = RELOAD_S
    assert ring.refresh() == {"b", "c"}
    assert ring.find("two") is ring.find("three") is None
    limits = ring.named("a")
    assert limits is not None and limits.concurrency == 1
    clock.now = 2 * RELOAD_S
    assert ring.refresh() == set()


@pytest.mark.parametrize("text", ["[[key", None])
def test_a_file_that_breaks_changes_nothing(
    text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "keys.toml", Clock()
    write(path, entry("a", "one"))
    ring = KeyRing([], path, clock)
    if text is None:
        path.unlink()
    else:
        write(path, text)
    clock.now = RELOAD_S
    with caplog.at_level(logging.ERROR):
        assert ring.refresh() == set()
    assert "the keys stay as they were" in caplog.text
    assert ring.find("one") is not None
    write(path, entry("b", "two"))
    clock.now = 2 * RELOAD_S
    assert ring.refresh() == {"a"}
