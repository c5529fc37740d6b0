"""`jitney bench serve`: a server under load from client processes, over WebSocket and over server-sent events."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Annotated, Any, Literal

import msgspec
import typer

from ....runtime.errors import InvalidField
from ....runtime.process import num_cores
from ..engine_options import EngineOptions
from ..opening import stderr
from ..options import MaxRows, Threads, with_options
from ..workload import Job, Measured
from ..workload import Lengths as Range
from .client_process import ClientJob
from .clients import Limits, Served, run_clients, served
from .lists import Lengths
from .offline import rates
from .process import run_alone
from .report import Files, Plot, show
from .servers import SERVED, jitney_server, vllm_server
from .shapes import Subject

MOST_PROCESSES = 8
MOST_ROWS = 256
WARM_UP = 8
SPARE_TOKENS = 64
"""Of the context, for what a chat template adds."""


class Load(msgspec.Struct, frozen=True):
    """`clients` answers at a time, or `rate` requests a second; `input` and `output` are tokens of each request."""

    clients: int
    requests: int
    input: int
    output: int
    lanes: int
    rate: float | None
    vocab_size: int
    limits: Limits

    @property
    def lengths(self) -> Lengths:
        """Of the prompt and the answer of each request."""
        return [(self.input, self.output)] * self.requests

    def run(self, url: str, transport: str, name: str, lengths: Lengths, seed: int) -> Served:
        """Split over processes, which begin together; each draws its prompts from a seed of its own, `seed` on."""
        processes = max(1, min(MOST_PROCESSES, num_cores(), self.clients, len(lengths)))
        jobs = [
            ClientJob(
                url=url,
                model=name,
                transport="ws" if transport == "ws" else "sse",
                lanes=self.lanes,
                concurrency=len(range(number, self.clients, processes)),
                lengths=lengths[number::processes],
                vocab_size=self.vocab_size,
                seed=seed + number,
                rate=None if self.rate is None else self.rate / processes,
            )
            for number in range(processes)
        ]
        return served(run_clients(jobs), self.limits)


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """Options of these names: what is asked of a server."""

    clients: Annotated[int, typer.Option(min=1, help="Answers that are open at a time.")] = 8
    requests: Annotated[int | None, typer.Option(min=1, help="In all.  [default: 4 a client]")] = None
    input_length: Annotated[int, typer.Option("--input", min=1, metavar="TOKENS")] = 512
    output_length: Annotated[int, typer.Option("--output", min=2, metavar="TOKENS")] = 256
    lanes: Annotated[int, typer.Option(min=1, max=16, help="Answers at a time on one WebSocket.")] = 1
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Requests a second, at random times, in place of a fixed number open."),
    ] = None
    first_limit: Annotated[float, typer.Option(min=0, help="Goodput: ms to the first token.")] = 200.0
    token_limit: Annotated[float, typer.Option(min=0, help="Goodput: ms a token after it.")] = 50.0

    def load(self, vocab_size: int) -> Load:
        return Load(
            clients=self.clients,
            requests=self.requests or 4 * self.clients,
            input=self.input_length,
            output=self.output_length,
            lanes=self.lanes,
            rate=self.rate,
            vocab_size=vocab_size,
            limits=Limits(self.first_limit, self.token_limit),
        )


@with_options
def serve(
    subject: Subject,
    url: Annotated[
        str | None, typer.Option(help="A server that runs already, in place of one of its own.")
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name at --url.")] = SERVED,
    transport: Annotated[
        Literal["ws", "sse", "both"],
        typer.Option(help="WebSocket, server-sent events, or one after the other."),
    ] = "both",
    *,
    requests: Requests,
    against: Annotated[
        Literal["vllm"] | None, typer.Option(help="A peer's server, over the same events.")
    ] = None,
    offline: Annotated[
        bool, typer.Option(help="Run the list without a server too, for what serving loses.")
    ] = True,
    max_rows: MaxRows = None,
    threads: Threads = None,
    files: Files,
    engine: EngineOptions,
) -> None:
    """Measure a server: throughput, time to first token, time per token, gaps, goodput, the loss against offline."""
    if url is not None and against is not None:
        raise InvalidField("--against", "no --url beside it", against)
    with subject.opened() as (path, load_format):
        load = requests.load(_vocab_size(path, load_format))
        flags = _flags(engine, load_format, max_rows, threads)
        ours = jitney_server(path, flags) if url is None else nullcontext(url)
        columns = _measured(ours, load, ["ws", "sse"] if transport == "both" else [transport], "jitney", name)
        if against is not None:
            longest = requests.input_length + requests.output_length + SPARE_TOKENS
            peer = vllm_server(path, engine, load_format, longest)
            columns |= _measured(peer, load, ["sse"], against, name)
        settings = engine.settings(load_format) | {"num_threads": threads}
        alone = _alone(path, load, max_rows, settings) if offline and url is None else None
    title = f"{subject.name}: {load.requests} requests of {load.input} tokens in, {load.output} out"
    _show(title, load, columns, alone)
    report = {"model": subject.name, "load": load, "served": columns, "offline": alone}
    files.write(report, lambda: _draw(title, columns, alone))


def _measured(
    server: AbstractContextManager[str], load: Load, transports: list[str], who: str, name: str
) -> dict[str, Served]:
    """By server and transport, after a warm-up of the same kind. No prompt comes twice: it would be cached."""
    found: dict[str, Served] = {}
    seeds = count(step=MOST_PROCESSES)
    stderr().print(f"Starting {who} …")
    with server as url:
        for transport in transports:
            with stderr().status(f"Measuring {who} over {transport} …"):
                warm = msgspec.structs.replace(load, rate=None)
                warm.run(url, transport, name, load.lengths[: max(WARM_UP, load.clients)], next(seeds))
                found[f"{who}, {transport}"] = load.run(url, transport, name, load.lengths, next(seeds))
    return found


def _vocab_size(path: str, load_format: str) -> int:
    from ....runtime.engines.abstract import resolve

    return resolve(path, random_weights=load_format == "random").vocab_size


def _flags(engine: EngineOptions, load_format: str, max_rows: int | None, threads: int | None) -> list[str]:
    """As the command line spells them."""
    values = msgspec.structs.asdict(engine) | {"max_rows": max_rows, "threads": threads}
    if load_format != "auto":
        values["load_format"] = load_format
    given = {flag: value for flag, value in values.items() if value is not None}
    return [part for flag, value in given.items() for part in (f"--{flag.replace('_', '-')}", str(value))]


def _alone(path: str, load: Load, max_rows: int | None, settings: dict[str, Any]) -> float:
    """Output tokens a second of the same list without a server."""
    job = Job(
        engine="dynamic", model=path, num_requests=load.requests, input=Range(load.input, load.input),
        output=Range(load.output, load.output), batch=min(load.clients, max_rows or MOST_ROWS), repeats=1, seed=0,
        settings=settings,
    )  # fmt: skip
    module = f"{__package__.rpartition('.')[0]}.measure"
    return max(rates(run_alone(module, job, Measured, "the list without a server")))


def _show(title: str, load: Load, columns: dict[str, Served], alone: float | None) -> None:
    rows = [
        ("output tokens/s", [f"{c.tokens_per_s:,.1f}" for c in columns.values()]),
        ("requests/s", [f"{c.requests_per_s:.2f}" for c in columns.values()]),
        ("goodput, requests/s", [f"{c.goodput:.2f}" for c in columns.values()]),
        ("first token, ms", [_spread(c.first_ms) for c in columns.values()]),
        ("a token after it, ms", [_spread(c.token_ms) for c in columns.values()]),
        ("gap between pieces, ms", [_spread(c.gap_ms) for c in columns.values()]),
        ("tokens in pieces", [f"{c.num_tokens} in {c.num_pieces}" for c in columns.values()]),
        ("busiest client, of a core", [f"{c.client_cpu:.2f}" for c in columns.values()]),
    ]
    if alone is not None:
        losses = [f"{100 * (1 - c.tokens_per_s / alone):.1f} %" for c in columns.values()]
        rows.append((f"loss against offline ({alone:,.1f})", losses))
    how = f"{load.rate:g} requests a second" if load.rate else f"{load.clients} at a time"
    limits = f"{load.limits.first_ms:g} ms to the first token, {load.limits.token_ms:g} ms a token"
    caption = f"{how}, {load.lanes} on a WebSocket; p50 / p90 / p99 / max; goodput within {limits}."
    show(title, caption, ["", *columns], [[name, *cells] for name, cells in rows])


def _spread(points: dict[str, float]) -> str:
    return " / ".join(f"{value:.1f}" for value in points.values())


def _draw(title: str, columns: dict[str, Served], alone: float | None) -> Plot:
    plot = Plot(title, "", "output tokens/s")
    plot.bars(list(columns), [column.tokens_per_s for column in columns.values()])
    if alone is not None:
        plot.line("offline", [-0.5, len(columns) - 0.5], [alone, alone], is_limit=True)
    return plot
