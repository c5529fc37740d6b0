"""Where `jitney serve` takes its settings from: flags, over `JITNEY_*` variables, over a TOML file.

An option `--drain-s` is the variable `JITNEY_DRAIN_S` and the file's `drain-s` or `drain_s`. A name that is no option
is refused in either place: a setting that is misspelled would otherwise be one that is not in force.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from ...runtime.errors import InvalidField, JitneyError

PREFIX = "JITNEY_"
ELSEWHERE = frozenset({"JITNEY_CACHE"})
"""Variables that other parts read."""
SECRETS = frozenset({"api_key", "metrics_key"})

CONTEXT = {"auto_envvar_prefix": "JITNEY"}
"""The settings of a command's context that make its options variables."""


def read_settings(ctx: typer.Context, path: Path | None) -> Path | None:
    """The callback of `--config`, which runs before the other options are read. Raises `JitneyError`."""
    params = {param.name or "": param for param in ctx.command.params if param.name != "help"}
    variables = {name for name in os.environ if name.startswith(PREFIX)} - ELSEWHERE
    known = {PREFIX + name.upper() for name in params}
    for name in sorted(variables - known):
        raise JitneyError(f"{name}: no such setting{_nearest(name, known)}")
    given = {} if path is None else _read(path)
    for name, value in given.items():
        if name not in params:
            raise JitneyError(f"{path}: {name}: no such setting{_nearest(name, params)}")
        given[name] = _plain(f"{path}: {name}", value, params[name])
    if "JITNEY_MODEL" in variables:  # an argument, which has no variable of its own
        given["model"] = os.environ["JITNEY_MODEL"]
    ctx.default_map = given
    return path


def shown(ctx: typer.Context) -> str:
    """The settings that are not the defaults, for the log; secrets masked."""
    defaults = {param.name: param.default for param in ctx.command.params}
    changed = {
        name: "***" if name in SECRETS else value
        for name, value in ctx.params.items()
        if value is not None and value != defaults.get(name) and value not in ([], ())
    }
    return " ".join(f"{name}={value}" for name, value in changed.items())


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JitneyError(f"{path}: expected a TOML file of settings: {error}") from None
    return {name.replace("-", "_"): value for name, value in values.items()}


def _plain(field: str, value: Any, param: Any) -> Any:
    """As the command line would have spelled it."""
    if isinstance(value, list) and param.multiple:
        return [_plain(field, item, param) for item in value]
    is_flag = getattr(param, "is_flag", False)
    if isinstance(value, bool) is not is_flag or not isinstance(value, (str, int, float)):
        got = "***" if param.name in SECRETS else value
        raise InvalidField(field, "true or false" if is_flag else "text or a number", got)
    return value if is_flag else str(value)


def _nearest(name: str, known: Iterable[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
