"""The thread that writes to sockets: all that is handed over arrives once and in order, whoever reads and whoever does
not, and a connection is neither written to nor closed before."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any

import pytest

from jitney.streaming import sender as module
from jitney.streaming.line import Line, Outbox, SettledTransport
from jitney.streaming.sender import Sender, open_sender


class End:
    """One end of a connection, as a sender knows it."""

    def __init__(self, *, holds: int | None = None) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        if holds is not None:
            self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, holds)
        self.fd, self.handed, self.left = self.ours.fileno(), 0, b""

    def leave(self, rest: bytes) -> None:
        self.left += rest

    def received(self) -> bytes:
        self.theirs.setblocking(False)
        got = b""
        try:
            while part := self.theirs.recv(2**20):
                got += part
        except BlockingIOError:
            pass
        return got

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
async def sender(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sender]:
    monkeypatch.setattr(module, "FEWEST_CORES", 1)
    sender = open_sender()
    assert sender is not None, "it is built where the tests run"
    yield sender
    sender.close()


async def test_what_is_given_arrives(sender: Sender) -> None:
    ends = [End() for _ in range(50)]
    for turn in range(20):
        sender.give([*ends], [b"%d of %d " % (turn, i) for i in range(len(ends))])
        sender.settle(ends[0].handed)
    for i, end in enumerate(ends):
        assert end.received() == b"".join(b"%d of %d " % (turn, i) for turn in range(20)) and not end.left
        end.close()


async def test_more_than_the_library_remembers(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 5)
    ends = [End() for _ in range(23)]
    for _ in range(3000):
        sender.give([*ends], [b"x"] * len(ends))
    sender.settle(ends[-1].handed)
    for end in ends:
        assert end.received() + end.left == b"x" * 3000
        end.close()


async def test_what_a_socket_does_not_take_is_its_lines_again_without_being_asked_for(sender: Sender) -> None:
    full, broken, free = End(holds=4096), End(), End()
    broken.theirs.close()
    data = [b"x" * 10**6, b"lost", b"y"]
    sender.give([full, broken, free], data)
    while True:
        if sender.collected == 3:  # the loop was told
            break
        await asyncio.sleep(0)
    assert free.received() == b"y" and not free.left
    assert broken.left == b"lost"
    assert 0 < len(full.left) < 10**6 and full.received() + full.left == data[0]
    for end in (full, broken, free):
        end.close()


async def test_closing_it_writes_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST_CORES", 1)
    sender, end = open_sender(), End()
    assert sender is not None
    sender.give([end], [b"last words"])
    sender.close()
    assert end.received() == b"last words"
    end.close()


@pytest.mark.parametrize(
    ("cores", "suffixes", "why"),
    [
        (3, EXTENSION_SUFFIXES, "a thread for it needs 4 cores"),
        (4, [".nowhere"], "no C compiler when jitney was installed"),
    ],
)
async def test_without_cores_or_library_lines_write_for_themselves(
    cores: int,
    suffixes: list[str],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "FEWEST_CORES", 4)
    monkeypatch.setattr(module, "num_cores", lambda: cores)
    monkeypatch.setattr("jitney.runtime.extension.EXTENSION_SUFFIXES", suffixes)
    assert open_sender() is None and module.without_sender() == why and why in caplog.text


async def test_lines_that_outlive_it_write_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST_CORES", 1)
    monkeypatch.setattr("jitney.streaming.line.FEW", 1)
    outbox, end = Outbox(open_sender()), End()
    line, wire = Line(outbox), Slow(end)
    line.open(wire)
    line.put_frame(b"a")
    await asyncio.sleep(0)
    assert line.handed == 1
    outbox.close()
    for text in (b"b", b"c"):
        line.put_frame(text)
        await asyncio.sleep(0)
    line.close()
    outbox.close()
    assert end.received() == b"\x81\x01a" and wire.written == b"\x81\x01b\x81\x01c"
    end.close()


class Slow(asyncio.Transport):
    """Over a real socket; keeps what is written to it itself."""

    def __init__(self, end: End) -> None:
        super().__init__({"socket": end.ours})
        self.written = b""

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def write(self, data: Any) -> None:
        self.written += data


async def test_a_line_writes_only_after_what_it_handed_over(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the line can see, the thread stands still until it is waited for."""
    monkeypatch.setattr("jitney.streaming.line.FEW", 1)
    waits, wait, outbox, end = [], sender._waiting.jitney_sender_wait, Outbox(sender), End()
    line, wire = Line(outbox), Slow(end)
    line.open(wire)

    def waited(given: int, count: int) -> None:
        waits.append(count)
        wait(given, count)
        wire.written += b"|"

    monkeypatch.setattr(sender._waiting, "jitney_sender_wait", waited)
    monkeypatch.setattr(sender._quick, "jitney_sender_done", lambda given: len(waits))
    for text in (b"a", b"b", b"c"):
        line.put_frame(text)
        await asyncio.sleep(0)
    assert waits == [1] and wire.written == b"|\x81\x01b\x81\x01c", "it had bytes to send first"
    wire.written = b""
    line.put_frame(b"d")
    await asyncio.sleep(0)
    SettledTransport(wire, line).write(b"pong")
    assert waits == [1, 2] and wire.written == b"|pong"
    line.put_frame(b"e")
    line.close()
    assert end.received() == b"\x81\x01a\x81\x01d"
    end.close()
