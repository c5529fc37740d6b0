"""Log lines on their way to a file descriptor, written by a thread: a terminal that was stopped, or a pipe that nobody
reads, would else stop the loop at the next line, and every answer with it.

`emit` may be called from any thread and never waits. What finds no room is counted, and the count is written once there
is room again. `close` waits for what is left, but not for a reader who does not come; the thread ends with the process.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading

MOST_LINES = 10_000
"""Waiting to be written."""
LAST_WORDS_S = 1.0


class LogLines(logging.Handler):
    def __init__(self, descriptor: int, most: int = MOST_LINES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[str | None] = queue.Queue(most)
        self._num_lost = 0
        self._writer = threading.Thread(target=self._write_all, name="jitney-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Formatted here: what a line tells of the task that it comes from is known here alone."""
        try:
            self._waiting.put_nowait(self.format(record) + "\n")
        except queue.Full:
            self._num_lost += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            pass  # nobody reads
        else:
            self._writer.join(LAST_WORDS_S)
        super().close()

    def _write_all(self) -> None:
        while (line := self._waiting.get()) is not None:
            if lost := self._lost():
                line = f"{lost} log lines were lost: nobody read them\n{line}"
            self._write(line.encode("utf-8", "backslashreplace"))

    def _lost(self) -> int:
        """Since this was last asked."""
        self.acquire()
        try:
            lost, self._num_lost = self._num_lost, 0
        finally:
            self.release()
        return lost

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # whoever shares it has set it so
                select.select((), (self._descriptor,), ())
            except OSError:
                return  # nobody is left to read
