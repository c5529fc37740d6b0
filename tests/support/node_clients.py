"""Running the scripts of tests/streaming/clients under Node.js, where it and their packages are installed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[1] / "streaming" / "clients"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (CLIENTS / "node_modules").is_dir(),
    reason="Node.js, or the packages of tests/streaming/clients, are not installed (make node)",
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


async def run_node(script: str, *arguments: str, timeout_s: float = 100) -> None:
    """Run a script to its end; it says `ok` last. The loop goes on meanwhile."""
    node = await asyncio.create_subprocess_exec(
        "node",
        str(CLIENTS / script),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await node.communicate()
    except BaseException:
        node.kill()
        await node.wait()
        raise
    assert node.returncode == 0 and output.decode().endswith("ok\n"), output.decode()
