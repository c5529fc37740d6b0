"""The attention kernels compile for the cards that the support table names, within what their multiprocessors hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "support" / "compile_attention.py"


@pytest.mark.parametrize(
    "capability,shared_kib",
    [
        pytest.param(80, 163, marks=pytest.mark.large),
        pytest.param(86, 99, marks=pytest.mark.large),
        (90, 227),
    ],
)
def test_compiles(capability: int, shared_kib: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= shared_kib * 1024
