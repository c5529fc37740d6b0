"""Kernels of attention and of products in eight bits compile for the cards that the support table names, within what
their multiprocessors hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.mark.parametrize(
    "script,capability,shared_kib",
    [
        pytest.param("compile_attention.py", 80, 163, marks=pytest.mark.large),
        pytest.param("compile_attention.py", 86, 99, marks=pytest.mark.large),
        ("compile_attention.py", 90, 227),
        pytest.param("compile_products.py", 89, 99, marks=pytest.mark.large),
        ("compile_products.py", 90, 227),
    ],
)
def test_compiles(script: str, capability: int, shared_kib: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(SUPPORT / script), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= shared_kib * 1024
