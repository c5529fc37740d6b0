"""A tiny checkpoint of every family."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoints import FAMILIES, write_checkpoint


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each family."""
    root = tmp_path_factory.mktemp("models")
    return {family: write_checkpoint(root / f"tiny-{family.lower()}", family) for family in FAMILIES}
