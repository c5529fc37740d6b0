"""`jitney chat` on a real pseudo-terminal: typing, Ctrl-C, Ctrl-D, the slash commands."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAIN = "from jitney.streaming.cli import main; main()"
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """The person's side of a terminal that a child process controls."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.seen = ""
        self._master = master

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def leave_with(self, key: str) -> int:
        """The exit status. The key is pressed again while readline still has the terminal: one that comes in the
        instant between its prompt and its wait shows only at the next."""
        self.type(key)
        for _ in range(40):
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(3)
            if self._is_edited:
                self.type(key)
        raise AssertionError("it did not leave")

    @property
    def _is_edited(self) -> bool:
        local_modes: int = termios.tcgetattr(self._master)[3]
        return not local_modes & termios.ICANON

    def wait_for(self, text: str, within_s: float = 100.0) -> str:
        """What came up to and with `text`; it is then behind us."""
        deadline = time.monotonic() + within_s
        while text not in self.seen:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self._master, 4096).decode()
        before, _, self.seen = self.seen.partition(text)
        return before


@contextmanager
def chat(script: Path, stdout: int | None = None) -> Iterator[Terminal]:
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "chat", "--scripted", str(script)],
        stdin=slave,
        stdout=slave if stdout is None else stdout,
        stderr=slave,
        env=os.environ | {"TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_a_conversation(script: Path) -> None:
    with chat(script) as terminal:
        terminal.wait_for("Ctrl-D leaves")
        terminal.wait_for("> ")
        terminal.type("The capital?\r")
        terminal.wait_for("Paris.")
        terminal.wait_for("> ")
        terminal.type("/help\r")
        terminal.wait_for("/new starts over")
        terminal.type("/new\r")
        terminal.type("/nonsense\r")
        terminal.wait_for("/nonsense is not a command")
        terminal.type("This is broken.\r")
        terminal.wait_for("the script failed this request")
        terminal.wait_for("> ")
        terminal.type("The capital?\r")
        terminal.wait_for("Paris.")
        terminal.wait_for("> ")
        assert terminal.leave_with(CTRL_D) == 0


def test_ctrl_c_stops_an_answer_and_a_second_leaves(script: Path) -> None:
    with chat(script) as terminal:
        terminal.wait_for("> ")
        terminal.type("A long one.\r")
        terminal.wait_for("two")
        terminal.type(CTRL_C)
        assert "the end" not in terminal.wait_for("> ")
        terminal.type("The capital?\r")
        terminal.wait_for("Paris.")
        terminal.wait_for("> ")
        assert terminal.leave_with(CTRL_C) == 0


def test_only_answers_go_to_standard_output(script: Path) -> None:
    reader, writer = os.pipe()
    with chat(script, stdout=writer) as terminal:
        os.close(writer)
        terminal.wait_for("> ")
        terminal.type("The capital?\r")
        terminal.wait_for("> ")
        assert terminal.leave_with(CTRL_D) == 0
    with os.fdopen(reader) as answers:
        assert answers.read() == "Paris.\n"
