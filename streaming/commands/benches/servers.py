"""Servers to put load on: ours, a peer's, each a process that is ended when the block is left."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import IO

from ....runtime.errors import JitneyError
from ..engine_options import EngineOptions
from ..settings import ELSEWHERE, PREFIX
from .process import last_line

START_S = 600.0
END_S = 20.0
MAIN = "from jitney.streaming.cli import main; main()"
SERVED = "measured"
"""The model's name on every server."""


@contextmanager
def jitney_server(model: str, flags: list[str]) -> Iterator[str]:
    """Its URL. Raises `JitneyError` with its last words where it does not start."""
    command = [
        sys.executable, "-c", MAIN, "serve", model, "--port", "0", "--served-model-name", SERVED,
        "--log-level", "warning", *flags,
    ]  # fmt: skip
    ours = {name: os.environ[name] for name in os.environ if not name.startswith(PREFIX) or name in ELSEWHERE}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ours
    )
    assert process.stderr is not None
    rest = threading.Thread(target=process.stderr.read, daemon=True)
    try:
        said = "it said nothing"
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                rest.start()  # a full pipe would stop it
                yield found[0]
                return
            said = line.strip() or said
        raise JitneyError(f"the server did not start: {said}")
    finally:
        _end(process)
        if rest.is_alive():
            rest.join()
        process.stderr.close()


@contextmanager
def vllm_server(model: str, engine: EngineOptions, load_format: str, max_len: int) -> Iterator[str]:
    """vLLM's OpenAI server at its defaults, but for the prefix cache. Raises `JitneyError` where it is missing."""
    if find_spec("vllm") is None:
        raise JitneyError("vllm is not installed")
    port = _free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--port", str(port), "--host", "127.0.0.1",
        "--served-model-name", SERVED, "--max-model-len", str(max_len), "--no-enable-prefix-caching",
        "--load-format", "dummy" if load_format == "random" else "auto", "--dtype", engine.dtype,
        "--kv-cache-dtype", engine.kv_dtype, *(("--quantization", engine.quantize) if engine.quantize else ()),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with TemporaryFile() as said:  # a pipe would fill while nobody reads it
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            _wait(process, url, said)
            yield url
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, said: IO[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            said.seek(0)
            last = last_line(said.read()) or "it said nothing"
            raise JitneyError(f"the server ended with status {process.returncode}: {last}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise JitneyError(f"the server was not ready within {START_S:g} s")


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
