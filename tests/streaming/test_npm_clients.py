"""Official npm clients, unmodified, against the real server and the default model: the command line as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from node_clients import needs_node, run_node

MAIN = "from jitney.streaming.cli import main; main()"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    arguments = [sys.executable, "-c", MAIN, "serve", "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        lines: list[str] = []
        for line in server.stderr:
            lines.append(line)
            if " serves at " in line:
                break
        assert lines and " serves at " in lines[-1], "".join(lines)
        yield lines[-1].split()[-1]
        server.terminate()
        server.stderr.read()
        assert server.wait(100) == 0


@needs_node
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", ["chat_transport.mjs", "responses_ws.mjs", "stream_text.mjs"])
async def test_an_official_client(url: str, script: str) -> None:
    await run_node(script, url, timeout_s=500)
