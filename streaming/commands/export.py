"""`jitney export`: any checkpoint in, an engine directory out, or what other engines read."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from ...runtime.errors import InvalidField
from ...runtime.process import short_spins
from .opening import stderr
from .options import MODEL_HELP, with_options

if TYPE_CHECKING:
    from ...export.contents import Report
    from ...export.options import ExportOptions
    from ...export.source import Source
    from ...runtime.weights.manifest import Quality

Size = Annotated[
    int | None, typer.Option(min=1, help="What the engine is sized for.  [default: at the start]")
]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Each field is an option of the same name, and a field of `ExportOptions`."""

    tokenizer: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="A directory with tokenizer.json, for checkpoints without one."
        ),
    ] = None
    quantize: Annotated[
        Literal["int8", "int4", "fp8"] | None, typer.Option(help="Narrow the weights, with calibration.")
    ] = None
    tp: Annotated[int, typer.Option(min=1, max=1024, help="Split over this many devices.")] = 1
    pp: Annotated[int, typer.Option(min=1, max=1024, help="Pipeline stages, for trtllm.")] = 1
    max_kl: Annotated[
        float | None,
        typer.Option(min=0, help="Refuse a mean KL divergence, in nats, above this.  [default: by type]"),
    ] = None
    accept_quality: Annotated[
        bool, typer.Option("--accept-quality", help="Export whatever the quality is.")
    ] = False
    text: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Calibrate and measure on this text.  [default: ours]"
        ),
    ] = None
    max_rows: Size = None
    max_context: Size = None
    max_batch_tokens: Size = None
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Bring the kernels of this machine's card, timed and compiled.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False


@with_options
def export(
    checkpoint: Annotated[str, typer.Argument(help=f"{MODEL_HELP} Also a Megatron checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="ENGINE", help="The directory to make.")],
    format: Annotated[
        Literal["engine", "hf", "trtllm"],
        typer.Option(help="For jitney; for vLLM, SGLang and TensorRT-LLM; for trtllm-build."),
    ] = "engine",
    *,
    wanted: Wanted,
) -> None:
    """Make an engine directory: stripped, fused, narrowed, checked; it starts in seconds."""
    with short_spins():
        from ...export.allocator import give_back_large_blocks
        from ...export.open import open_source
        from ...export.options import ExportOptions

    give_back_large_blocks()
    options = ExportOptions(source=checkpoint, **msgspec.structs.asdict(wanted))
    if options.pp != 1 and format != "trtllm":
        raise InvalidField("--pp", "1, except with --format trtllm", options.pp)
    if options.kernels and format != "engine":
        raise InvalidField("--kernels", "only with --format engine", format)
    if options.tp != 1 and format == "hf":
        raise InvalidField("--tp", "1: a Hugging Face directory is cut by whoever reads it", options.tp)
    source = open_source(checkpoint, tokenizer=options.tokenizer)
    with _stoppable():
        {"engine": _engine, "hf": _huggingface, "trtllm": _trtllm}[format](source, target, options)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does: what is half made is taken away."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    former = {number: signal.signal(number, stop) for number in numbers if is_main}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _engine(source: Source, target: Path, options: ExportOptions) -> None:
    from ...export.engine_directory import export_engine

    with progress() as report:
        manifest = export_engine(source, target, options, report)
    _say_result(source, target, manifest.weight_bytes, manifest.quality)


def _huggingface(source: Source, target: Path, options: ExportOptions) -> None:
    from ...export.hf_directory import export_huggingface

    with progress() as report:
        contents = export_huggingface(source, target, options, report)
    _say_result(source, target, contents.num_bytes, contents.quality)


def _trtllm(source: Source, target: Path, options: ExportOptions) -> None:
    from ...export.trtllm_directory import build_command, export_trtllm, run_builder

    with progress() as report:
        contents = export_trtllm(source, target, options, report)
    _say_result(source, target, contents.num_bytes, contents.quality)
    command = build_command(target, target.with_name(target.name + "-engine"), options)
    if not run_builder(command):
        stderr().print(
            f"{command[0]} is not installed here, so no TensorRT engine was built. Where TensorRT-LLM up to 1.2 is:"
            f" {' '.join(command)}",
            soft_wrap=True,
        )


def _say_result(source: Source, target: Path, weight_bytes: int, quality: Quality | None) -> None:
    say = stderr().print
    for part in source.stripped:
        say(f"left out: {part.group}: {part.num_items:,} items, {part.num_bytes:,} bytes", soft_wrap=True)
    if quality is not None:
        say(
            f"perplexity {quality.perplexity:.2f} (source {quality.source_perplexity:.2f}),"
            f" mean KL {quality.kl:.4f} nats, same likeliest token at {quality.agreement:.1%} of"
            f" {quality.num_tokens:,} positions of {quality.text}",
            soft_wrap=True,
        )
    say(f"{target}: {weight_bytes:,} bytes of weights", soft_wrap=True)


@contextmanager
def progress() -> Iterator[Report]:
    """Bars on standard error: what is done, of how much, and the time left."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr()) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report
