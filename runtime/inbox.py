"""The way from the loop to the worker."""

from __future__ import annotations

from queue import Empty, SimpleQueue

from .messages import Command


class Inbox:
    """First in, first out; any thread may `put`, which never blocks; only the worker drains.

    The worker drains between two steps: at once when it has work, otherwise it sleeps here until something comes.
    What is put after `Stop` is never read: the engine seals those responses itself when the worker reports its end.
    """

    def __init__(self) -> None:
        self._commands: SimpleQueue[Command] = SimpleQueue()

    def put(self, command: Command) -> None:
        self._commands.put(command)

    def drain(self, *, wait: bool, patience_s: float | None = None) -> list[Command]:
        """Everything that is there; with `wait`, at least one command, unless none comes for `patience_s`."""
        drained: list[Command] = []
        try:
            if wait:
                drained.append(self._commands.get(timeout=patience_s))
            while True:
                drained.append(self._commands.get_nowait())
        except Empty:
            return drained
