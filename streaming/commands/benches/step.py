"""`jitney bench step`: one decode step by batch and context, against what reading its bytes takes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..engine_options import EngineOptions
from ..options import Threads, with_options
from .process import run_alone
from .report import Files, Plot, show
from .shapes import Subject
from .step_process import StepFigures, StepJob, StepResult

HEADINGS = (
    "rows x context", "ms", "p90", "floor ms", "% of roofline", "tokens/s", "host us", "GPU idle %", "prefill tok/s",
)  # fmt: skip


def numbers(text: str | list[int]) -> list[int]:
    """`1,8,32`."""
    if isinstance(text, list):
        return text
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise typer.BadParameter(f"expected numbers such as 1,8,32, got {text!r}")
    return found


@with_options
def step(
    subject: Subject,
    batch: Annotated[Any, typer.Option(parser=numbers, metavar="ROWS,...")] = "1,8,32",
    context: Annotated[Any, typer.Option(parser=numbers, metavar="TOKENS,...")] = "1024",
    steps: Annotated[int, typer.Option(min=2, help="Steps of each size that are timed.")] = 100,
    bandwidth: Annotated[
        float | None, typer.Option(min=0.001, help="GB/s that the roofline assumes.  [default: measured]")
    ] = None,
    threads: Threads = None,
    *,
    files: Files,
    engine: EngineOptions,
) -> None:
    """Time decode steps by batch and context, without an engine around them."""
    with subject.opened() as (path, load_format):
        settings = engine.settings(load_format) | {"num_threads": threads}
        job = StepJob(
            model=path, batches=batch, contexts=context, steps=steps, settings=settings,
            bandwidth=bandwidth and bandwidth * 1e9,
        )  # fmt: skip
        result = run_alone(f"{__package__}.step_process", job, StepResult, f"steps of {subject.name}")
    show(
        f"{subject.name}: decode steps on {result.device}",
        f"Roofline: {result.weight_bytes:,} bytes of weights, and keys and values, at"
        f" {result.bandwidth / 1e9:,.0f} GB/s{'' if bandwidth else ' (measured)'}. Ready in {result.load_s:.1f} s.",
        HEADINGS,
        [_row(figures) for figures in result.figures],
    )
    report = {"model": subject.name, "settings": settings, "result": result}
    files.write(report, lambda: _draw(subject.name, result))


def _row(figures: StepFigures) -> list[str]:
    size = f"{figures.batch} x {figures.context}"
    if figures.failure is not None:
        return [size, figures.failure]
    return [
        size,
        f"{figures.ms:.3f}",
        f"{figures.ms_p90:.3f}",
        f"{figures.floor_ms:.3f}",
        f"{100 * figures.floor_ms / figures.ms:.0f}",
        f"{1000 * figures.batch / figures.ms:,.0f}",
        f"{figures.host_us:.0f}",
        "-" if figures.idle is None else f"{100 * figures.idle:.1f}",
        f"{figures.prefill_tokens_per_s:,.0f}",
    ]


def _draw(name: str, result: StepResult) -> Plot:
    plot = Plot(f"{name}: decode step on {result.device}", "rows", "ms")
    for context in sorted({figures.context for figures in result.figures}):
        points = [f for f in result.figures if f.context == context and f.failure is None]
        rows = [figures.batch for figures in points]
        plot.line(f"context {context}", rows, [figures.ms for figures in points])
        plot.line(f"roofline, context {context}", rows, [f.floor_ms for f in points], is_limit=True)
    return plot
