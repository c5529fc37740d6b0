"""`jitney key`: what it prints lets its key in, and nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from jitney.streaming.access.keys import KeyRing

Jitney = Callable[..., Result]


def test_the_table_lets_the_key_in_and_holds_no_secret(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    first, second = jitney("key", "team-a"), jitney("key", "team-b", "--trusted")
    path.write_text(first.stdout + second.stdout)
    ring = KeyRing([], path, lambda: 0.0)
    for result, name, trusted in ((first, "team-a", False), (second, "team-b", True)):
        secret = re.search(r"jk-\S+", result.stderr)
        assert result.exit_code == 0 and secret is not None
        found = ring.find(secret[0])
        assert found is not None and (found.name, found.trusted) == (name, trusted)
        assert secret[0] not in path.read_text()


def test_a_bad_name_is_refused(jitney: Jitney) -> None:
    result = jitney("key", "no spaces")
    assert result.exit_code == 2 and result.stderr.startswith("jitney: name: expected 1 to 64")
