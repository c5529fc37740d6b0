"""A connection's frames on their way out: what befalls one connection is its own affair."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jitney.streaming.line import Line, Outbox


class Wire(asyncio.Transport):
    """Keeps what is written, or breaks."""

    def __init__(self, *, is_broken: bool = False) -> None:
        super().__init__()
        self.written = b""
        self.is_aborted = False
        self._is_broken = is_broken

    def is_closing(self) -> bool:
        return self.is_aborted

    def write(self, data: Any) -> None:
        if self._is_broken:
            raise RuntimeError("no more of this")
        self.written += data

    def abort(self) -> None:
        self.is_aborted = True


async def test_a_connection_that_breaks_as_it_is_written_to_holds_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox, wires = Outbox(), [Wire(is_broken=True), Wire()]
    lines = [Line(outbox) for _ in wires]
    for line, wire in zip(lines, wires, strict=True):
        line.open(wire)
    for _ in range(2):
        for line in lines:
            line.put_frame(b"x")
        await asyncio.sleep(0)
    assert wires[0].is_aborted and not wires[0].written
    assert wires[1].written == b"\x81\x01x" * 2 and not wires[1].is_aborted
    assert [line.held_bytes for line in lines] == [0, 0]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["no more of this"]
