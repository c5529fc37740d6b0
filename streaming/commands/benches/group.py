"""`jitney bench` as a group of commands; without a name it means `offline`."""

from __future__ import annotations

import typer
from typer.core import TyperGroup

from .offline import offline
from .serve import serve
from .step import step


class Benches(TyperGroup):
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["offline", *args]
        return super().parse_args(ctx, args)


bench = typer.Typer(name="bench", cls=Benches, add_completion=False, pretty_exceptions_enable=False)
for command in (step, offline, serve):
    bench.command()(command)


@bench.callback()
def _measured() -> None:
    """Measure a decode step, a list of requests, or a server under load; `offline` unless told."""
