"""What a steady decode step costs the host, without a model: median microseconds a step, by rows.

    python benchmarks/host_step.py [--rows 1 32 256] [--steps 2000] [--churn]

`plan` and `commit` are the worker's share, `events` is the loop's: a report becomes text and events in the logs;
`readers` what one reader a response adds. Pages hold 64 tokens, so that of 256 rows four grow at each step. With
`--churn` answers are 256 tokens long: of 256 rows one ends at each step and another is seated; without, none ends.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from statistics import median

from jitney.runtime import EngineConfig, SamplingParams
from jitney.runtime.batch import Batch, Capacity, Decoded, Outcomes, RowOutcome, RowSampling
from jitney.runtime.dispatcher import Dispatcher
from jitney.runtime.inbox import Inbox
from jitney.runtime.messages import Generate, Report
from jitney.runtime.response import Response
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.testing import ByteTokenizer

TOKEN = 97
COLUMNS = ("plan", "commit", "events", "readers")


def outcomes(batch: Batch) -> Outcomes:
    chunks = [RowOutcome(chunk.slot, (TOKEN,)) for chunk in batch.chunks if chunk.samples]
    return [Decoded(batch.decodes, [TOKEN] * len(batch.decodes)), *chunks]


class Bench:
    """A scheduler and a dispatcher on one thread, two launches ahead, and a reader for each response."""

    def __init__(self, rows: int, max_tokens: list[int]) -> None:
        capacity = Capacity(30_000, 64, max_rows=rows, depth=2, max_batch_tokens=8192, mixed_tokens=8192)
        self.scheduler = Scheduler(capacity)
        self._inbox = Inbox()
        self._desk = Dispatcher(EngineConfig(max_queued=10_000), ByteTokenizer(), self._inbox, time.monotonic)
        self._desk.opened(capacity)
        self._in_flight: list[Batch] = []
        self._readers: set[asyncio.Task[None]] = set()
        for index, tokens in enumerate(max_tokens):
            self._admit(index, tokens)

    def _admit(self, index: int, tokens: int) -> None:
        sampling = RowSampling(seed=1, end_token_ids=(2, 3))
        request = Generate(
            id=f"r{index}",
            prompt=tuple(range(100 + index % 64)),
            sampling=sampling,
            max_tokens=tokens,
            arrival=index,
        )
        response = self._desk.admit(request, SamplingParams(max_tokens=tokens))
        self._readers.add(asyncio.create_task(self._read(response)))

    async def _read(self, response: Response) -> None:
        async for _ in response.events():
            pass

    async def step(self) -> list[float]:
        for command in self._inbox.drain(wait=False):
            assert isinstance(command, Generate)
            self.scheduler.add(command)
        marks = [time.perf_counter()]
        batch = self.scheduler.plan()
        marks.append(time.perf_counter())
        self._in_flight += [batch] if batch is not None else []
        if not self._in_flight or (batch is not None and len(self._in_flight) <= 2):
            return [0.0] * 4
        given = outcomes(self._in_flight.pop(0))
        began = time.perf_counter()
        outputs = self.scheduler.commit(given)
        marks[0] += (waited := began - marks[1])
        marks[1] += waited
        marks.append(time.perf_counter())
        self._desk.receive(Report(outputs, self.scheduler.stats()))
        marks.append(time.perf_counter())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        marks.append(time.perf_counter())
        return [after - before for before, after in zip(marks, marks[1:], strict=False)]

    def close(self) -> None:
        for reader in self._readers:
            reader.cancel()


async def measure(rows: int, steps: int, churn: bool) -> list[float]:
    """Medians by column, in seconds."""
    length = 256 if churn else steps + 100
    count = rows * (3 + steps // length) if churn else rows
    lengths = [length * (index + 1) // rows if churn and index < rows else length for index in range(count)]
    bench = Bench(rows, lengths)
    for _ in range(length if churn else 50):
        await bench.step()
    gc.collect()
    gc.freeze()
    taken = [await bench.step() for _ in range(steps)]
    bench.close()
    return [median(column) for column in zip(*taken, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--churn", action="store_true")
    args = parser.parse_args()
    print("rows  " + "".join(f"{name:>10}" for name in COLUMNS) + "   us a step")
    for rows in args.rows:
        took = asyncio.run(measure(rows, args.steps, args.churn))
        print(f"{rows:>4}  " + "".join(f"{1e6 * each:>10.1f}" for each in took))


if __name__ == "__main__":
    main()
