"""Log lines over a descriptor that is read late, or not at all."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator

import pytest

from jitney.streaming.log_lines import LogLines

PIPE_BYTES = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            pass


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("jitney", logging.INFO, "", 0, message, None, None)


def test_lines_in_their_order_to_the_last(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    lines = LogLines(writer)
    for number in range(100):
        lines.handle(record(f"{number} é \udc80"))
    lines.close()
    assert os.read(reader, PIPE_BYTES).decode() == "".join(f"{n} é \\udc80\n" for n in range(100))


def test_a_reader_who_comes_late_hears_how_many_were_lost(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"x" * PIPE_BYTES)
    lines = LogLines(writer, most=3)
    for number in range(9):
        lines.handle(record(f"line {number}"))
    assert os.read(reader, PIPE_BYTES) == b"x" * PIPE_BYTES
    told = b""
    while told.count(b"\n") < 3:  # what had found room
        told += os.read(reader, PIPE_BYTES)
    lines.handle(record("the last"))
    lines.close()
    told += os.read(reader, PIPE_BYTES)
    [lost] = re.findall(r"^(\d) log lines were lost: nobody read them$", told.decode(), re.MULTILINE)
    kept = re.findall(r"^line (\d)$", told.decode(), re.MULTILINE)
    assert kept == sorted(kept) and len(kept) + int(lost) == 9
    assert told.endswith(b"the last\n")


def test_a_descriptor_that_somebody_made_non_blocking(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    lines, line = LogLines(writer), "x" * (3 * PIPE_BYTES)
    lines.handle(record(line))
    told = b""
    while not told.endswith(b"\n"):
        told += os.read(reader, PIPE_BYTES)
    lines.close()
    assert told.decode() == line + "\n"


def test_a_reader_who_does_not_come(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.streaming.log_lines.LAST_WORDS_S", 0.0)
    _, writer = pipe
    os.write(writer, b"x" * PIPE_BYTES)
    lines = LogLines(writer, most=2)
    for number in range(9):
        lines.handle(record(f"line {number}"))
    lines.close()


def test_a_reader_who_has_left(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    lines = LogLines(writer)
    lines.handle(record("to nobody"))
    lines.close()
