"""What every measurement carries, and how it is written down: a table, JSON, a plot."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ....runtime.errors import JitneyError
from ....runtime.process import num_cores
from ..machine import installed
from .device import Kind

PACKAGES = ("jitney", "torch", "triton", "tokenspeed-fa3", "transformers", "vllm")

FILE_WIDTH = 140
"""Of a table that goes to a file."""


def machine() -> dict[str, Any]:
    """Where it was measured, by which command, with what installed."""
    found = {name: installed(name) for name in PACKAGES}
    versions = {name: version for name, version in found.items() if version is not None}
    return {
        "command": shlex.join(["jitney", *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | versions,
        "machine": {"cores": num_cores(), "system": platform.platform(), "processor": platform.machine()},
    }


def device_name(kind: Kind) -> str:
    """The card, or the CPU. Loads torch."""
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {num_cores()} cores"


def show(title: str, caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, caption=caption)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(table)


def percentile(values: Sequence[float], share: float) -> float:
    """Of values in any order; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class Plot:
    """One picture of lines over numbers."""

    def __init__(self, title: str, x: str, y: str) -> None:
        figure: Any = import_module("matplotlib.figure")
        self._figure = figure.Figure(figsize=(8, 5), layout="constrained")
        self._axes = self._figure.subplots()
        self._axes.set(title=title, xlabel=x, ylabel=y)

    def line(self, name: str, x: Sequence[float], y: Sequence[float], *, is_limit: bool = False) -> None:
        self._axes.plot(x, y, "k--" if is_limit else "o-", label=name)

    def bars(self, names: Sequence[str], heights: Sequence[float]) -> None:
        self._axes.bar(range(len(names)), heights, tick_label=list(names))

    def save(self, path: Path) -> None:
        if self._axes.get_legend_handles_labels()[0]:
            self._axes.legend()
        self._figure.savefig(path, format="png", dpi=120)


class Files(msgspec.Struct, frozen=True):
    """Where the figures go beside the terminal: options of these names. Raises `JitneyError` before anything is
    measured where nothing could be drawn."""

    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the figures there too.")] = None
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw them as a PNG; needs matplotlib.")
    ] = None

    def __post_init__(self) -> None:
        if self.plot is not None and find_spec("matplotlib") is None:
            raise JitneyError("--plot: matplotlib is not installed; it comes with the extra [bench]")

    def write(self, report: dict[str, Any], draw: Callable[[], Plot]) -> None:
        """What was asked for, of the two."""
        if self.json is not None:
            self.json.write_bytes(msgspec.json.format(msgspec.json.encode(machine() | report)) + b"\n")
        if self.plot is not None:
            draw().save(self.plot)
