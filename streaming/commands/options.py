"""Options that several commands share, and the readers of their values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
import typer

DEFAULT_MODEL = "smollm2-135m"
MODEL_HELP = "A known name, a Hugging Face directory or hub id, or a GGUF file."

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def num_bytes(text: str) -> int:
    """`2GiB`, `500MB`, `1.5GiB` or a plain number, as bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    if match is None or match[2].upper() not in _UNITS:
        raise typer.BadParameter(f"expected a size such as 2GiB, 500MB or 1048576, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def is_default(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was left out."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("DEFAULT", "DEFAULT_MAP")


Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=True)]
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
Scripted = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Serve this TOML file's replies in place of a model."),
]
Dtype = Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="What the model computes in.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Compute threads on the CPU.  [default: all cores; one less to serve]"),
]
MaxRows = Annotated[
    int | None,
    typer.Option(min=1, help="Sequences that decode together.  [default: 32 on the CPU, 256 on a card]"),
]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """In the place of each parameter that is a struct: the struct's fields, each an option of the same name."""
    signature = inspect.signature(command, eval_str=True)
    groups = {
        parameter.name: parameter.annotation
        for parameter in signature.parameters.values()
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, msgspec.Struct)
    }

    @wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field: given.pop(field) for field in kind.__struct_fields__})
        command(**given)

    parameters = [
        option
        for name, parameter in signature.parameters.items()
        for option in (_fields(groups[name]) if name in groups else [parameter])
    ]
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
    return run


def _fields(kind: type[msgspec.Struct]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in msgspec.structs.fields(kind)
    ]
