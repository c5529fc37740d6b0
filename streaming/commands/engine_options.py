"""Options that say on what, and how, a command's own engine runs: written once, given to each command that has one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import typer

from ...runtime.config import EngineConfig
from .options import num_bytes


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
        return EngineConfig(**self.settings(), **settings)

    def settings(self, load_format: str = "auto") -> dict[str, Any]:
        """As `EngineConfig` names them; the given load format where it is not the default."""
        fields = msgspec.structs.asdict(self)
        fields["memory_bytes"] = fields.pop("memory")
        if load_format != "auto":
            fields["load_format"] = load_format
        return fields
