"""`jitney bench offline`: throughput of a list of requests on several engines, each in its own process in turn."""

from __future__ import annotations

import statistics
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import msgspec
import typer

from ....runtime.errors import InvalidField, JitneyError
from ....runtime.process import num_cores
from ..engine_options import EngineOptions
from ..opening import stderr
from ..options import Threads, with_options
from ..workload import EngineName, Job, Measured, lengths
from .lists import LISTS
from .process import run_alone
from .report import Files, Plot, show
from .shapes import Subject

OURS: tuple[EngineName, ...] = ("dynamic", "static", "transformers")
MOST_ROWS = 256


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Options of these names: which requests, and how they are run."""

    requests: Annotated[
        str, typer.Option(metavar="COUNT|LIST", help=f"How many, all at once; or {', '.join(LISTS)}.")
    ] = "32"
    input_length: Annotated[
        Any, typer.Option("--input", parser=lengths, metavar="TOKENS", help="128, or 32-256 for mixed.")
    ] = "32-256"
    output_length: Annotated[
        Any, typer.Option("--output", parser=lengths, metavar="TOKENS", help="128, or 16-256 for mixed.")
    ] = "16-256"
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Rows that decode together.  [default: 8; for a fixed list 256]"),
    ] = None
    repeats: Annotated[int, typer.Option(min=1)] = 3
    seed: Annotated[int, typer.Option(help="Draws lengths and tokens.")] = 0

    def __post_init__(self) -> None:
        if self.list_name is None and (not self.requests.isdecimal() or int(self.requests) < 1):
            expected = f"a number of at least 1, or one of {', '.join(LISTS)}"
            raise InvalidField("--requests", expected, self.requests)

    @property
    def list_name(self) -> str | None:
        return self.requests if self.requests in LISTS else None

    def job(self, engine: EngineName, path: str, settings: dict[str, Any]) -> Job:
        is_list = self.list_name is not None
        return Job(
            engine=engine,
            model=path,
            num_requests=len(LISTS[self.requests]) if is_list else int(self.requests),
            input=self.input_length,
            output=self.output_length,
            batch=self.batch or (MOST_ROWS if is_list else 8),
            repeats=self.repeats,
            seed=self.seed,
            requests=self.list_name,
            settings=settings if engine != "transformers" else settings | {"quantize": None},
        )


@with_options
def offline(
    engine: Annotated[
        Literal["dynamic", "static", "transformers", "all"] | None,
        typer.Option(
            help="Continuous batching, plain padded batches, transformers' generate, or each of them.  [default: all;"
            " dynamic for a fixed list]"
        ),
    ] = None,
    against: Annotated[
        Literal["vllm", "transformers"] | None, typer.Option(help="A peer beside it, on the same list.")
    ] = None,
    *,
    subject: Subject,
    workload: Workload,
    threads: Threads = None,
    files: Files,
    options: EngineOptions,
) -> None:
    """Measure offline throughput: the same requests on each engine, in fresh processes on the same cores.

    Requests that are drawn are answered greedily; those of a fixed list at temperature 0.6.
    """
    is_drawn = workload.list_name is None and subject.random_shape is None
    engines = chosen(engine or ("all" if is_drawn else "dynamic"), against)
    with subject.opened() as (path, load_format):
        settings = options.settings(load_format) | {"num_threads": threads or num_cores()}
        jobs = [workload.job(name, path, settings) for name in engines]
        results = [_run(job) for job in jobs]
    title = f"{subject.name}: {_described(jobs[0])}"
    _show(title, jobs[0], results)
    files.write(_report(jobs[0], subject.name, results), lambda: _draw(title, results))


def chosen(engine: str, against: str | None) -> list[EngineName]:
    """Raises `JitneyError` where what was asked for by name is not installed."""
    names: list[EngineName] = [name for name in OURS if engine in (name, "all")]
    names += [name for name in ("vllm", "transformers") if name == against and name not in names]
    for name in sorted({"vllm", "transformers"} & set(names), key=lambda name: name not in (engine, against)):
        if find_spec(name) is None:
            if name in (engine, against):
                raise JitneyError(f"{name} is not installed")
            stderr().print(f"{name} is not installed, and is left out.")
            names = [other for other in names if other != name]
    return names


def _run(job: Job) -> Measured:
    what = f"{job.engine}, {job.repeats} times"
    return run_alone(f"{__package__.rpartition('.')[0]}.measure", job, Measured, what)


def rates(result: Measured) -> list[float]:
    return [result.num_tokens / seconds for seconds in result.seconds]


def step_ms(result: Measured) -> float | None:
    """Of a decode step: the whole less its first tokens, over the others."""
    if not result.first_s or result.output_len is None:
        return None
    steady = statistics.median(result.seconds) - statistics.median(result.first_s)
    return 1000 * steady / (result.output_len - 1)


def _described(job: Job) -> str:
    if job.requests is not None:
        return f"list {job.requests}, {job.num_requests} requests"
    return f"{job.num_requests} requests of {job.input} tokens in, {job.output} out"


def _versions(results: list[Measured]) -> str:
    found = {name: version for result in results for name, version in result.versions.items()}
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items())) + "."


def _show(title: str, job: Job, results: list[Measured]) -> None:
    caption = (
        f"Median of {job.repeats} and range; {job.batch} rows at a time; {num_cores()} cores."
        f" {results[0].device}. {_versions(results)}"
    )
    show(title, caption, _headings(results), [_row(result, results[-1]) for result in results])


def _draw(title: str, results: list[Measured]) -> Plot:
    plot = Plot(title, "engine", "output tokens/s")
    plot.bars([result.engine for result in results], [statistics.median(rates(result)) for result in results])
    return plot


def _headings(results: list[Measured]) -> list[str]:
    apart = ["first ms", "step ms"] if results[0].first_s else []
    return [
        "engine",
        "tokens/s",
        "range",
        "prompt tok/s",
        *apart,
        "seconds",
        "ready s",
        f"x {results[-1].engine}",
    ]


def _row(result: Measured, base: Measured) -> list[str]:
    speeds, seconds, step = rates(result), statistics.median(result.seconds), step_ms(result)
    apart = [] if step is None else [f"{1000 * statistics.median(result.first_s):.2f}", f"{step:.3f}"]
    return [
        f"{result.engine}, {result.quantize}" if result.quantize else result.engine,
        f"{statistics.median(speeds):.1f}",
        f"{min(speeds):.1f} to {max(speeds):.1f}",
        f"{result.num_prompt_tokens / seconds:,.0f}",
        *apart,
        f"{seconds:.2f}",
        f"{result.load_s:.1f}",
        f"{statistics.median(speeds) / statistics.median(rates(base)):.2f}",
    ]


def _report(job: Job, model: str, results: list[Measured]) -> dict[str, Any]:
    left_out = {"engine"} if job.requests is None else {"engine", "input", "output", "seed"}
    workload = {key: value for key, value in msgspec.to_builtins(job).items() if key not in left_out}
    return {
        "workload": workload | {"model": model},
        "results": [
            msgspec.to_builtins(result)
            | {"tokens_per_s": round(statistics.median(rates(result)), 2), "step_ms": step_ms(result)}
            for result in results
        ],
    }
