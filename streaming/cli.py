"""The command line, where runtime, streaming and export meet. `jitney --help` and `--version` load no torch."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..runtime.errors import JitneyError
from .commands.benches.group import bench
from .commands.chat import chat
from .commands.doctor import doctor
from .commands.export import export
from .commands.generate import generate
from .commands.key import key
from .commands.plan import plan
from .commands.serve import serve
from .commands.settings import CONTEXT


class Commands(TyperGroup):
    """Ends a command that raised a `JitneyError`, or that a file was in the way of, with one line on standard error and
    status 2. A reader of standard output that is gone is typer's."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (JitneyError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            typer.echo(f"jitney: {error}", err=True)
            raise typer.Exit(2) from error


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"jitney {version('jitney')}")
        raise typer.Exit


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """A streaming runtime for language models."""


app.command()(chat)
app.command(context_settings=CONTEXT)(serve)
for command in (generate, export, key, plan, doctor):
    app.command()(command)
app.add_typer(bench, name="bench")


def main() -> None:
    """The entry point of the console script."""
    sys.exit(app(prog_name="jitney"))
