"""`jitney generate`: one request a line in, one result a line out, in order, with a bounded number in flight.

A run that is broken off goes on where it stopped: every whole line of the output stands for one request of the input,
and a torn last line is cut off and done again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...runtime.config import EngineConfig
from ...runtime.errors import EngineDied, InvalidField, RequestError
from ...runtime.params import SamplingParams
from ...runtime.process import num_cores
from .engine_options import EngineOptions
from .jsonl import Done, read_request, requests, take_up
from .opening import opened, stderr
from .options import DEFAULT_MODEL, MaxRows, ModelOption, Scripted, with_options

if TYPE_CHECKING:
    from ...runtime import DynamicEngine

MAX_ROWS = 256
"""The most that an engine has by default."""


@with_options
def generate(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", exists=True, dir_okay=False, help="A JSON object a line.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", dir_okay=False, help="A JSON object a line.")],
    model: ModelOption = DEFAULT_MODEL,
    max_rows: MaxRows = None,
    scripted: Scripted = None,
    *,
    engine: EngineOptions,
) -> None:
    """Answer every line of a JSONL file: {"prompt": ...} or {"messages": [...]}, and sampling fields.

    Results are written in the order of the input; run it again to go on where a run was broken off. A line that
    cannot be answered gives {"error": ...}, and status 1 at the end.
    """
    config = engine.config(
        max_rows=max_rows,
        max_queued=max(1024, 2 * (max_rows or MAX_ROWS)),
        num_threads=num_cores(),
    )
    if target.exists() and target.samefile(source):
        raise InvalidField("OUTPUT", "another file than INPUT", str(target))
    done = take_up(target)
    num_lines = sum(1 for _ in requests(source))
    if done.num_lines > num_lines:
        raise RequestError(f"{target} has {done.num_lines} results, {source} only {num_lines} requests")
    if done.num_lines < num_lines:
        asyncio.run(_run(source, target, num_lines, done, model, scripted, config))
    if done.num_errors:
        stderr().print(f"{done.num_errors} of {num_lines} requests failed; their lines say why.")
        raise typer.Exit(1)


async def _run(
    source: Path,
    target: Path,
    num_lines: int,
    done: Done,
    model: str,
    scripted: Path | None,
    config: EngineConfig,
) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[errors]}"))
    async with opened(model, scripted, config) as engine:
        results = _results(
            engine, requests(source, skip=done.num_lines), num_in_flight=2 * (config.max_rows or 1)
        )
        console = stderr()
        with (
            target.open("ab") as out,
            Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        ):
            task = bar.add_task("", total=num_lines, completed=done.num_lines, errors="")
            async with aclosing(results):
                async for result in results:
                    out.write(msgspec.json.encode(result) + b"\n")
                    out.flush()
                    done.num_errors += "error" in result
                    bar.update(task, advance=1, errors=f"{done.num_errors} failed" if done.num_errors else "")


async def _results(
    engine: DynamicEngine, lines: Iterable[bytes], num_in_flight: int
) -> AsyncGenerator[dict[str, Any], None]:
    """Results in the order of the lines. A line is read when it can be sent off, so memory does not grow with them."""
    pending: deque[asyncio.Task[dict[str, Any]]] = deque()
    try:
        for line in lines:
            pending.append(asyncio.create_task(_result(engine, line)))
            if len(pending) == num_in_flight:
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _result(engine: DynamicEngine, line: bytes) -> dict[str, Any]:
    own_id: dict[str, Any] = {}
    try:
        request = read_request(line)
        if request.id is not None:
            own_id = {"id": request.id}
        [answer] = await engine.generate([request.prompt], request.params)
    except RequestError as error:
        return own_id | {"error": str(error)}
    if answer["error"] is None:
        return own_id | _told(answer, request.params)
    if engine.stats().state == "dead":
        raise EngineDied(answer["error"])
    return own_id | {"error": answer["error"]}


def _told(answer: dict[str, Any], params: SamplingParams) -> dict[str, Any]:
    """What a result line says: the text, and what the request asked for beside it."""
    keys = ["text", "finish_reason", "usage"]
    if params.n > 1 or params.logprobs is not None:
        keys.append("choices")
    if params.prompt_logprobs is not None:
        keys.append("prompt_logprobs")
    return {key: answer[key] for key in keys}
