"""`jitney plan`: what a model takes on a card, in bytes, before a weight is read. Needs no card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ...runtime.config import EngineConfig
from ...runtime.errors import InvalidField
from .benches.shapes import RandomShape, Subject
from .options import DEFAULT_MODEL, Dtype, Model, num_bytes


def plan(
    model: Model = DEFAULT_MODEL,
    random_shape: RandomShape = None,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=num_bytes, metavar="SIZE", help="Such as 24GiB.  [default: what the card has free]"
        ),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Sequences that decode together.  [default: 256]")
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one sequence.  [default: the model's]")
    ] = None,
    dtype: Dtype = "auto",
    quantize: Annotated[
        Literal["int8", "fp8"] | None, typer.Option(help="What weights are narrowed to.")
    ] = None,
    kv_dtype: Annotated[
        Literal["auto", "fp8"], typer.Option(help="What keys and values are kept in.")
    ] = "auto",
    mode: Annotated[
        Literal["auto", "fast", "deterministic"], typer.Option(help="As for jitney serve.")
    ] = "auto",
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one step.  [default: 8192]")
    ] = None,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the figures there too.")] = None,
) -> None:
    """Size an engine for a card: bytes by purpose, and how many tokens its pages hold. Reads only headers."""
    from ...runtime.cuda.plan import plan_device
    from ...runtime.engines.abstract import resolve
    from ...runtime.weights.checkpoint import Checkpoint

    config = EngineConfig(
        max_rows=max_rows, max_context=max_context, dtype=dtype, quantize=quantize, kv_dtype=kv_dtype,
        memory_bytes=memory, mode=mode, max_batch_tokens=max_batch_tokens,
    )  # fmt: skip
    subject = Subject(model, random_shape)
    with subject.opened() as (path, load_format):
        backend = resolve(path, random_weights=load_format == "random")
    if not isinstance(backend, Checkpoint):
        raise InvalidField("MODEL", "a model that a card serves", model)
    shape, config = backend.config, backend.sized(backend.as_stored(config))
    is_wide = dtype == "float32" or (dtype == "auto" and shape.dtype == "float32")
    made = plan_device(shape, config, memory or _free_bytes(), value_bytes=4 if is_wide else 2)
    Console(highlight=False, markup=False).print(_table(subject.name, made))
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")


def _free_bytes() -> int:
    import torch

    if not torch.cuda.is_available():
        raise InvalidField("--memory", "a size such as 24GiB, where there is no card to ask", "nothing")
    return torch.cuda.mem_get_info()[0]


def _table(model: str, made: Any) -> Table:
    sizes = made.sizes
    table = Table(
        title=f"{model}: {sizes.max_rows} rows of up to {sizes.context:,} tokens",
        caption=f"{sizes.num_pages - 1:,} pages hold {made.num_tokens:,} tokens, all rows together.",
    )
    table.add_column("purpose")
    table.add_column("bytes", justify="right")
    table.add_column("GiB", justify="right")
    for purpose, size in [*made.parts.items(), ("total", made.total_bytes)]:
        table.add_row(
            purpose, f"{size:,}", f"{size / 2**30:.2f}", end_section=purpose == list(made.parts)[-1]
        )
    return table
