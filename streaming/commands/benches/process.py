"""A measurement in a process of its own: a job goes in as JSON, a result comes out. What libraries print on standard
output goes to standard error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from ....runtime.errors import JitneyError
from ..opening import stderr

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_alone(module: str, job: Any, result: type[Result], what: str) -> Result:
    """Raises `JitneyError` with the process's last line where it fails."""
    with stderr().status(f"Measuring {what} …"):
        done = subprocess.run(
            [sys.executable, "-m", module], input=msgspec.json.encode(job), capture_output=True
        )
    if done.returncode:
        raise JitneyError(last_line(done.stderr) or f"{what}: ended with status {done.returncode}")
    return msgspec.json.decode(done.stdout, type=result)


def last_line(said: bytes) -> str:
    """Of what a process wrote on standard error; empty where it wrote nothing."""
    return "".join(said.decode(errors="replace").strip().splitlines()[-1:])


def answer(job: type[Job], measure: Callable[[Job], Any], what: Callable[[Job], str]) -> None:
    """The other side: measure the job on standard input. One line and status 1 where it cannot run."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=job)
    try:
        measured = measure(given)
    except (JitneyError, OSError, ValueError) as error:
        sys.exit(f"{what(given)}: {error}")
    with out:
        out.write(msgspec.json.encode(measured))
