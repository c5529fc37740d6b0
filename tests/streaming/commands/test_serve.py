"""`jitney serve` as a process: ready, asked over HTTP, ended by a signal; and what it refuses to start."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from jitney.streaming.commands.options import num_bytes
from jitney.streaming.commands.serve import _is_loopback

Jitney = Callable[..., Result]
MAIN = "from jitney.streaming.cli import main; main()"


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL, once it says that it is ready."""
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "JITNEY_API_KEY"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield process, found[0]
                return
        raise AssertionError("it ended before it was ready")
    finally:
        process.kill()
        process.communicate()


def ask(url: str, key: str | None = None, model: str = "scripted", content: str = "The capital?") -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=100) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_ends_with_status_0(script: Path, number: int) -> None:
    with serving("--scripted", script) as (process, url):
        assert ask(url) == "Paris."
        process.send_signal(number)
        assert process.wait(100) == 0
        assert process.stdout is not None and process.stdout.read() == ""


def test_nobody_reads_its_log_lines(script: Path) -> None:
    """A pipe holds some fifteen of them here; a server that waits for more room answers nobody."""
    with serving("--scripted", script) as (process, url):
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        assert [ask(url) for _ in range(60)] == ["Paris."] * 60
        process.terminate()
        assert process.wait(100) == 0


def test_a_dead_engine_ends_the_process_once_its_clients_have_been_told(script: Path) -> None:
    with serving("--scripted", script) as (process, url):
        body = {"model": "scripted", "messages": [{"role": "user", "content": "long"}], "stream": True}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=100) as reply:
            assert reply.readline().startswith(b"data: ")
            with pytest.raises(urllib.error.HTTPError) as failed:
                ask(url, content="deadly")
            failed.value.close()
            rest = reply.read().decode()
        assert '"error"' in rest and "the engine died" in rest
        assert process.wait(100) == 2
        assert process.stderr is not None
        assert "jitney: the engine died and serves nothing more" in process.stderr.read()


def test_key_and_name(script: Path) -> None:
    with serving("--scripted", script, "--api-key", "secret", "--served-model-name", "mine") as (_, url):
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            ask(url, model="mine")
        refused.value.close()
        assert ask(url, key="secret", model="mine") == "Paris."


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid", ""])
def test_a_network_address_needs_a_key(jitney: Jitney, script: Path, host: str) -> None:
    result = jitney("serve", "--scripted", script, "--host", host, "--api-key", "")
    assert result.exit_code == 2
    assert result.stderr.startswith("jitney: --host: expected a loopback address, or --api-key")


@pytest.mark.parametrize(("host", "loopback"), [("localhost", True), ("127.0.0.9", True), ("::1", True)])
def test_loopback_needs_none(host: str, loopback: bool) -> None:
    assert _is_loopback(host) is loopback


def test_a_port_in_use_is_told_in_one_line(jitney: Jitney, script: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = jitney("serve", "--scripted", script, "--port", port)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"jitney: cannot serve at 127.0.0.1, port {port}")
    assert result.stderr.count("\n") == 1


def test_a_bad_size_is_refused(jitney: Jitney, script: Path) -> None:
    result = jitney("serve", "--scripted", script, "--kv-cache-bytes", "much")
    assert result.exit_code == 2 and "--kv-cache-bytes" in result.stderr


def test_sizes_are_read() -> None:
    sizes = ["2GiB", "1.5 GB", "10kb", "4096", "7 B"]
    assert [num_bytes(size) for size in sizes] == [2 * 2**30, 1_500_000_000, 10_000, 4096, 7]
