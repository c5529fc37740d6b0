"""Client processes that begin together, and what all of them saw as one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import msgspec

from ....runtime.errors import JitneyError
from .client_process import GO, READY, ClientJob, Seen
from .load import Timed
from .process import last_line
from .report import percentile

POINTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


class Limits(msgspec.Struct, frozen=True):
    """What a good answer keeps to, in ms: time to first token, and mean time of the others."""

    first_ms: float
    token_ms: float


class Served(msgspec.Struct, frozen=True):
    """Of one load. Times in ms at `POINTS`; `goodput` in requests a second within the limits."""

    tokens_per_s: float
    requests_per_s: float
    goodput: float
    first_ms: dict[str, float]
    token_ms: dict[str, float]
    gap_ms: dict[str, float]
    num_requests: int
    num_tokens: int
    num_pieces: int
    seconds: float
    client_cpu: float
    """Of one core, in the busiest client process: near 1 the clients are what is measured."""


def run_clients(jobs: list[ClientJob]) -> list[Seen]:
    """Raises `JitneyError` where one fails."""
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(job)) for job in jobs]
        for process in processes:
            if _pipe(process.stdout).readline() != READY:
                raise JitneyError(_last_words(process))
        for process in processes:
            _pipe(process.stdin).write(GO)
            _pipe(process.stdin).flush()
        return [_seen(process) for process in processes]


@contextmanager
def _process(job: ClientJob) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.client_process"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _pipe(process.stdin).write(msgspec.json.encode(job) + b"\n")
        _pipe(process.stdin).flush()
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            _pipe(pipe).close()


def _seen(process: subprocess.Popen[bytes]) -> Seen:
    said = _pipe(process.stdout).read()
    if process.wait():
        raise JitneyError(_last_words(process))
    return msgspec.json.decode(said, type=Seen)


def _last_words(process: subprocess.Popen[bytes]) -> str:
    return last_line(_pipe(process.stderr).read()) or "a client ended without a word"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def served(seen: list[Seen], limits: Limits) -> Served:
    seconds = max(one.ended for one in seen) - min(one.began for one in seen)
    answers = [answer for one in seen for answer in one.answers]
    gaps = [gap for answer in answers for gap in answer.gaps_s]
    num_tokens = sum(answer.num_tokens for answer in answers)
    good = sum(is_good(answer, limits) for answer in answers)
    return Served(
        tokens_per_s=num_tokens / seconds,
        requests_per_s=len(answers) / seconds,
        goodput=good / seconds,
        first_ms=_points([answer.first_s for answer in answers]),
        token_ms=_points([answer.token_s for answer in answers]),
        gap_ms=_points(gaps),
        num_requests=len(answers),
        num_tokens=num_tokens,
        num_pieces=len(gaps) + len(answers),
        seconds=seconds,
        client_cpu=max(one.cpu_s / (one.ended - one.began) for one in seen),
    )


def is_good(answer: Timed, limits: Limits) -> bool:
    return answer.first_s * 1e3 <= limits.first_ms and answer.token_s * 1e3 <= limits.token_ms


def _points(seconds: list[float]) -> dict[str, float]:
    return {name: round(1e3 * percentile(seconds, share), 3) for name, share in POINTS.items()}
