"""Frames for many sockets, written by a thread outside the interpreter's lock (`sender.c`): what a step brings to
hundreds of sockets costs the loop one call, not one of the system's for each.

All of this belongs to the loop. A line hands over what is due while its transport holds nothing, and hands over again,
writes, or closes only once that is out (`settle`), so that at most one job of a socket is in flight, nothing overtakes,
and no descriptor is closed, and found by another connection, while a job names it. What a socket did not take at once
becomes its transport's, whose buffer and errors are the only ones. Where the library was not built, or there are few
cores or few lines, each line writes for itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from collections import deque
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

from ..runtime.extension import Signatures, built, declared
from ..runtime.process import num_cores

FEWEST_CORES = 4
FEW = 8
"""So many sockets are written to sooner than a thread is woken."""
MOST = 4096
"""Jobs given at a time, and not asked for: a quarter of what the library remembers."""
SIGNATURES: Signatures = {
    "open": (c_void_p, [c_int]),
    "give": (None, [c_void_p, c_int64, POINTER(c_int), c_char_p, POINTER(c_int64)]),
    "done": (c_int64, [c_void_p]),
    "cut": (c_int64, [c_void_p]),
    "sent": (c_int64, [c_void_p, c_int64]),
    "wait": (None, [c_void_p, c_int64]),
    "close": (None, [c_void_p]),
}

logger = logging.getLogger("jitney.streaming")


class Handed(Protocol):
    """A connection as the sender knows it."""

    fd: int
    handed: int
    """The number of the jobs that were given up to its last one's batch: once so many are over, that is out."""

    def leave(self, rest: bytes) -> None:
        """It was not taken: its transport sends it. Never raises."""


class _Batch(NamedTuple):
    first: int
    lines: list[Handed]
    sizes: list[int]
    data: bytes

    @property
    def end(self) -> int:
        return self.first + len(self.lines)


class Sender:
    """Of one loop; `close` it after the last connection."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` where the library or its thread cannot be had."""
        self._loop = asyncio.get_running_loop()
        self._quick = declared(ctypes.PyDLL(str(path)), "jitney_sender", SIGNATURES)
        self._waiting = declared(ctypes.CDLL(str(path)), "jitney_sender", SIGNATURES)
        self._heard, bell = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(bell, False)
        self._bell = bell
        self._sender = self._quick.jitney_sender_open(bell)
        if not self._sender:
            os.close(self._heard)
            os.close(bell)
            raise OSError("no thread for it")
        self._loop.add_reader(self._heard, self._rung)
        self._batches = deque[_Batch]()
        self._given = self._cut = 0
        self.collected = 0
        """Jobs that are out, or their lines' again."""

    def give(self, lines: list[Handed], data: list[bytes]) -> None:
        """One job for each line, none of which has another in flight."""
        for start in range(0, len(lines), MOST):
            part = data[start : start + MOST]
            sizes = [*map(len, part)]
            self._give(_Batch(self._given, lines[start : start + MOST], sizes, b"".join(part)))

    def _give(self, batch: _Batch) -> None:
        count = len(batch.lines)
        if self._given - self.collected > MOST:
            self.settle(self._given)
        fds, sizes = (c_int * count)(*[line.fd for line in batch.lines]), (c_int64 * count)(*batch.sizes)
        self._batches.append(batch)
        self._given += count
        self._quick.jitney_sender_give(self._sender, count, fds, batch.data, sizes)
        for line in batch.lines:
            line.handed = self._given

    def collect(self) -> None:
        """Let go of what is out, and give their lines what is left of the rest."""
        done = self._quick.jitney_sender_done(self._sender)
        while self._batches and self._batches[0].end <= done:
            batch = self._batches.popleft()
            self.collected = batch.end
            if self._quick.jitney_sender_cut(self._sender) > self._cut:
                self._give_back(batch)

    def settle(self, handed: int) -> None:
        """Wait until so many jobs are over: those of a step take two or three milliseconds."""
        if handed > self.collected:
            self._waiting.jitney_sender_wait(self._sender, handed)
            self.collect()

    def close(self) -> None:
        """All that was given is written first."""
        self.settle(self._given)
        self._loop.remove_reader(self._heard)
        self._waiting.jitney_sender_close(self._sender)
        os.close(self._heard)
        os.close(self._bell)

    def _give_back(self, batch: _Batch) -> None:
        ends = accumulate(batch.sizes)
        for number, (line, size, end) in enumerate(
            zip(batch.lines, batch.sizes, ends, strict=True), batch.first
        ):
            sent = self._quick.jitney_sender_sent(self._sender, number)
            if sent < size:
                self._cut += 1
                line.leave(batch.data[end - size + sent : end])

    def _rung(self) -> None:
        """Some socket has not taken all, and nothing else may look after it for long."""
        os.read(self._heard, 4096)
        self.settle(self._given)


def open_sender() -> Sender | None:
    """On the running loop; None where each line is to write for itself."""
    reason, path = without_sender(), _library()
    try:
        if reason is None and path is not None:
            return Sender(path)
    except (OSError, AttributeError) as error:
        reason = str(error)
    logger.info("the event loop writes to sockets: %s", reason)
    return None


def without_sender() -> str | None:
    """Why the event loop writes; None where a thread does."""
    if num_cores() < FEWEST_CORES:
        return f"a thread for it needs {FEWEST_CORES} cores"
    return None if _library() else "no C compiler when jitney was installed"


def _library() -> Path | None:
    return built(Path(__file__).parent, "_sender")
