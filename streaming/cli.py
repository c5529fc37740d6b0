"""The command line, where runtime, streaming and export meet. `jitney --help` and `--version` load no torch, and a
command loads no other: half of what a start imports, which is a second where files are slow."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..runtime.errors import JitneyError
from .commands.settings import CONTEXT

COMMANDS = {name: name for name in ("chat", "serve", "generate", "export", "key", "plan", "doctor")}
COMMANDS |= {"bench": "benches.group"}
"""Which module under `commands` has a function, or a group of its own, of this name."""


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


class Jitney(Commands):
    """Each of its commands is loaded when it is asked for; `--help` asks for all."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # names, until one is asked for

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _loaded(cmd_name)
        return self.commands.get(cmd_name)


def _loaded(name: str) -> Any:
    command = getattr(import_module(f".commands.{COMMANDS[name]}", __package__), name)
    if isinstance(command, typer.Typer):
        return typer.main.get_command(command)
    alone = typer.Typer(add_completion=False)
    alone.command(name, context_settings=CONTEXT if name == "serve" else None)(command)
    return typer.main.get_command(alone)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"jitney {version('jitney')}")
        raise typer.Exit


app = typer.Typer(cls=Jitney, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """A streaming runtime for language models."""


def main() -> None:
    """The entry point of the console script."""
    sys.exit(app(prog_name="jitney"))
