"""`jitney bench`: offline throughput of a list of requests on several engines, each in its own process in turn."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ...runtime.errors import JitneyError
from ...runtime.process import num_cores
from .opening import stderr
from .options import DEFAULT_MODEL, Dtype, ModelOption, Quantize, Threads
from .workload import EngineName, Job, Measured, lengths


def bench(
    engine: Annotated[
        Literal["dynamic", "static", "transformers", "all"],
        typer.Option(
            help="Continuous batching, plain padded batches, transformers' generate, or each of them."
        ),
    ] = "all",
    model: ModelOption = DEFAULT_MODEL,
    requests: Annotated[int, typer.Option(min=1, help="How many, all at once.")] = 32,
    input_length: Annotated[
        Any, typer.Option("--input", parser=lengths, metavar="TOKENS", help="128, or 32-256 for mixed.")
    ] = "32-256",
    output_length: Annotated[
        Any, typer.Option("--output", parser=lengths, metavar="TOKENS", help="128, or 16-256 for mixed.")
    ] = "16-256",
    batch: Annotated[int, typer.Option(min=1, help="Rows that decode together.")] = 8,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Draws lengths and tokens.")] = 0,
    quantize: Quantize = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the figures there too.")] = None,
) -> None:
    """Measure offline throughput: the same requests on each engine, greedy, in fresh processes on the same cores."""
    jobs = [
        Job(
            engine=name,
            model=model,
            num_requests=requests,
            input=input_length,
            output=output_length,
            batch=batch,
            repeats=repeats,
            seed=seed,
            dtype=dtype,
            quantize=None if name == "transformers" else quantize,
            threads=threads or num_cores(),
        )
        for name in _chosen(engine)
    ]
    results = [_run(job) for job in jobs]
    Console(highlight=False, markup=False).print(_table(jobs[0], results))
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(_report(jobs[0], results))) + b"\n")


def _chosen(engine: str) -> list[EngineName]:
    names: list[EngineName] = [name for name in get_args(EngineName) if engine in (name, "all")]
    if "transformers" in names and find_spec("transformers") is None:
        if engine != "all":
            raise JitneyError("transformers is not installed")
        stderr().print("transformers is not installed, and is left out.")
        names.remove("transformers")
    return names


def _run(job: Job) -> Measured:
    command = [sys.executable, "-m", f"{__package__}.measure"]
    with stderr().status(f"Measuring {job.engine}, {job.repeats} times …"):
        done = subprocess.run(command, input=msgspec.json.encode(job), capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise JitneyError(lines[-1] if lines else f"{job.engine}: ended with status {done.returncode}")
    return msgspec.json.decode(done.stdout, type=Measured)


def _rates(result: Measured) -> list[float]:
    return [result.num_tokens / seconds for seconds in result.seconds]


def _table(job: Job, results: list[Measured]) -> Table:
    table = Table(
        title=f"{job.model}: {job.num_requests} requests of {job.input} tokens in, {job.output} out",
        caption=f"Median of {job.repeats} and range; {job.batch} rows at a time; {num_cores()} cores.",
    )
    base = results[-1]
    for heading in ("engine", "tokens/s", "range", "seconds", f"x {base.engine}"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for result in results:
        rates = _rates(result)
        ratio = statistics.median(rates) / statistics.median(_rates(base))
        table.add_row(
            f"{result.engine}, int8" if result.quantize else result.engine,
            f"{statistics.median(rates):.1f}",
            f"{min(rates):.1f} to {max(rates):.1f}",
            f"{statistics.median(result.seconds):.2f}",
            f"{ratio:.2f}",
        )
    return table


def _report(job: Job, results: list[Measured]) -> dict[str, Any]:
    return {
        "workload": {key: value for key, value in msgspec.to_builtins(job).items() if key != "engine"},
        "machine": {"cores": num_cores(), "system": platform.platform(), "processor": platform.machine()},
        "results": [
            msgspec.to_builtins(result) | {"tokens_per_s": round(statistics.median(_rates(result)), 2)}
            for result in results
        ],
    }
