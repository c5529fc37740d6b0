"""Options that say on what, and how, a command's own engine runs: written once, given to each command that has one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import msgspec
import typer

from .options import num_bytes

if TYPE_CHECKING:
    from ...runtime import EngineConfig


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Each field is an option of the same name, and `memory` is `EngineConfig.memory_bytes`."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="What computes; auto: an NVIDIA card if there is one."),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="What the model computes in.")
    ] = "auto"
    quantize: Annotated[
        Literal["int8", "fp8"] | None,
        typer.Option(help="Narrow the weights while loading: int8, or fp8 on a card."),
    ] = None
    kv_dtype: Annotated[
        Literal["auto", "fp8"], typer.Option(help="What keys and values are kept in; fp8 on a card.")
    ] = "auto"
    mode: Annotated[
        Literal["auto", "fast", "deterministic"],
        typer.Option(help="deterministic: no token depends on its neighbours.  [auto: fast on a card]"),
    ] = "auto"
    load_format: Annotated[
        Literal["auto", "random"], typer.Option(help="random: weights are drawn, not read.")
    ] = "auto"
    memory: Annotated[
        int | None,
        typer.Option(
            parser=num_bytes, metavar="SIZE", help="Of the card, all told.  [default: what is free, less 3 %]"
        ),
    ] = None
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one step.  [default: what suits the device]")
    ] = None
    run_ahead: Annotated[int, typer.Option(min=1, max=8, help="Launches in flight on a card.")] = 2

    def config(self, **settings: Any) -> EngineConfig:
        """With the settings that a command has beside these. Raises `InvalidField`."""
        from ...runtime import EngineConfig

        return EngineConfig(**self.settings(), **settings)

    def settings(self, load_format: str = "auto") -> dict[str, Any]:
        """As `EngineConfig` names them; the given load format where it is not the default."""
        fields = msgspec.structs.asdict(self)
        fields["memory_bytes"] = fields.pop("memory")
        if load_format != "auto":
            fields["load_format"] = load_format
        return fields


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put the options in the place of the command's parameter of type `EngineOptions`, which holds their values."""
    signature = inspect.signature(command, eval_str=True)
    [own] = [name for name, p in signature.parameters.items() if p.annotation is EngineOptions]
    hints = get_type_hints(EngineOptions, include_extras=True)
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in msgspec.structs.fields(EngineOptions)
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        values = {option.name: given.pop(option.name) for option in options}
        command(**given, **{own: EngineOptions(**values)})

    others = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in signature.parameters.values()
        if parameter.name != own
    ]
    run.__signature__ = signature.replace(parameters=[*others, *options])  # type: ignore[attr-defined]
    return run
