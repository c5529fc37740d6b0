"""One process of clients: says when it is connected, begins when it is told to, and hands back what it saw.

A closed loop has as many answers open as it may; an open loop begins them at drawn times whatever is still open.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from typing import Literal

import msgspec

from ....runtime.errors import JitneyError
from .lists import drawn
from .load import Asked, EventStreamLoad, Timed, WebSocketLoad

READY, GO = b"ready\n", b"go\n"


class ClientJob(msgspec.Struct, frozen=True, kw_only=True):
    """`lengths` are prompt and answer tokens of each request; `rate` in requests a second, None: a closed loop."""

    url: str
    model: str
    transport: Literal["ws", "sse"]
    lanes: int
    concurrency: int
    lengths: list[tuple[int, int]]
    vocab_size: int
    seed: int
    rate: float | None = None


class Seen(msgspec.Struct, frozen=True):
    """`began` and `ended` are of the system's monotonic clock, which all processes share."""

    began: float
    ended: float
    cpu_s: float
    answers: list[Timed]


async def run(job: ClientJob) -> Seen:
    prompts = drawn(job.lengths, job.vocab_size, job.seed)
    todo = [Asked(prompt, count) for prompt, (_, count) in zip(prompts, job.lengths, strict=True)]
    load = (
        WebSocketLoad(job.url, job.model, job.lanes)
        if job.transport == "ws"
        else EventStreamLoad(job.url, job.model)
    )
    await load.open(min(job.concurrency, len(todo)) if job.rate is None else len(todo))
    try:
        await _signal()
        began, cpu_s = time.monotonic(), time.process_time()
        if job.rate is None:
            answers = await _closed(load, todo, job.concurrency)
        else:
            answers = await _open(load, todo, job.rate, random.Random(job.seed))
        return Seen(began, time.monotonic(), time.process_time() - cpu_s, answers)
    finally:
        await load.close()


async def _signal() -> None:
    os.write(OUT, READY)
    line = await asyncio.to_thread(sys.stdin.buffer.readline)
    if line != GO:
        raise JitneyError("nobody said to begin")


async def _closed(load: WebSocketLoad | EventStreamLoad, todo: list[Asked], concurrency: int) -> list[Timed]:
    left, answers = iter(todo), list[Timed]()

    async def client() -> None:
        for asked in left:
            answers.append(await load.ask(asked))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(todo))):
            group.create_task(client())
    return answers


async def _open(
    load: WebSocketLoad | EventStreamLoad, todo: list[Asked], rate: float, draw: random.Random
) -> list[Timed]:
    due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for asked in todo:
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(group.create_task(load.ask(asked)))
    return [task.result() for task in tasks]


OUT = os.dup(1) if __name__ == "__main__" else 1


def main() -> None:
    """The job is the first line of standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=ClientJob)
    try:
        seen = asyncio.run(run(job))
    except* (JitneyError, OSError) as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        sys.exit(f"a client failed: {error}")
    else:
        with os.fdopen(OUT, "wb") as out:
            out.write(msgspec.json.encode(seen))


if __name__ == "__main__":
    main()
