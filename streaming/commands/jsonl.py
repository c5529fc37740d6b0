"""Requests and results as lines of JSON: reading a request, counting, and taking up an output that was broken off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.errors import InvalidField, RequestError
from ...runtime.params import SamplingParams
from ..protocols.fields import parse, typed


class Request(msgspec.Struct, frozen=True):
    """One line of input: what to answer, how, and the caller's own `id`, which comes back with the result."""

    prompt: Any
    """What the engine takes: text, token ids or chat messages."""
    params: SamplingParams
    id: Any = None


def read_request(line: bytes) -> Request:
    """The request on a line. Raises `RequestError` naming the field, what was expected and what came."""
    fields = parse(line, called="line")
    own_id, prompt, messages = (fields.pop(name, None) for name in ("id", "prompt", "messages"))
    if (prompt is None) == (messages is None):
        raise RequestError("expected one of the fields prompt and messages", field="prompt")
    if not isinstance(prompt, str | list | None):
        raise InvalidField("prompt", "a string or a list of token ids", prompt)
    if messages is not None and not (
        isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    ):
        raise InvalidField("messages", "a list of objects", messages)
    return Request(prompt if messages is None else messages, _sampling(fields), own_id)


def _sampling(fields: dict[str, Any]) -> SamplingParams:
    for name in fields:
        if name not in SamplingParams.__struct_fields__:
            known = ", ".join(("id", "prompt", "messages", *SamplingParams.__struct_fields__))
            raise RequestError(f"unknown field: {name[:80]!r}; expected one of {known}", field=name[:80])
    return typed(fields, SamplingParams)


def requests(path: Path, skip: int = 0) -> Iterator[bytes]:
    """The lines that are not blank, without the first `skip`, one at a time."""
    with path.open("rb") as lines:
        for line in lines:
            if line.isspace():
                continue
            if skip:
                skip -= 1
            else:
                yield line


class Done(msgspec.Struct):
    """What an earlier run left: its whole lines, and how many of them say `error`."""

    num_lines: int = 0
    num_errors: int = 0


class _Result(msgspec.Struct):
    """Of an answer, or of what was wrong with its request."""

    error: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.error is None and self.text is None:
            raise ValueError("neither text nor error")


def take_up(path: Path) -> Done:
    """Count the whole lines of an output and cut off a torn last one. Raises `RequestError` if it is none, or if what
    would be cut off cannot be the beginning of a result."""
    done = Done()
    if not path.exists():
        return done
    whole_bytes = 0
    with path.open("r+b") as lines:
        for number, line in enumerate(lines, 1):
            try:
                result = msgspec.json.decode(line, type=_Result)
            except msgspec.DecodeError as error:
                is_whole = isinstance(error, msgspec.ValidationError)  # JSON, but not what is expected
                if line.startswith(b"{") and not line.endswith(b"\n") and not is_whole:
                    break
                message = f"{path}, line {number}: expected a result of an earlier run: {error}"
                raise RequestError(message) from error
            if not line.endswith(b"\n"):
                break
            done.num_lines += 1
            done.num_errors += result.error is not None
            whole_bytes += len(line)
        lines.truncate(whole_bytes)
    return done
