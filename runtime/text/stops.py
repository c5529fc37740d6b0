"""Stop strings in a stream of text, in linear time (Aho and Corasick 1975).

The stop that ends first wins, whichever way the text was cut; of those that end together, the one that starts first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopMatcher:
    """One text, pushed piece by piece. What could still become part of a stop is held back, and nothing else."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the stop that is found ends the text, instead of being cut from it."""
        self._include = include
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._found: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._fall_back = self._links()
        self._node = 0
        self._held = ""

    def push(self, text: str, *, may_end: bool = True) -> tuple[str, str | None]:
        """Text that is certain, and the stop that ended it if one did. Nothing may be pushed after a stop. Where none
        may end it yet, those that are complete are text; one that begins there may end it later."""
        if not self._node and self._next[0].keys().isdisjoint(text):
            return text, None
        seen = len(self._held)
        pending = self._held + text
        for end, char in enumerate(text, seen + 1):
            self._node = self._advance(char)
            stop = self._found[self._node]
            if stop is not None and may_end:
                self._held = ""
                return pending[: end if self._include else end - len(stop)], stop
        certain = len(pending) - self._depth[self._node]
        self._held = pending[certain:]
        return pending[:certain], None

    def flush(self) -> str:
        """What was held back, once the text has ended without a stop."""
        held, self._held, self._node = self._held, "", 0
        return held

    def _advance(self, char: str) -> int:
        node = self._node
        while node and char not in self._next[node]:
            node = self._fall_back[node]
        return self._next[node].get(char, 0)

    def _add(self, stop: str) -> None:
        node = 0
        for depth, char in enumerate(stop, 1):
            if char not in self._next[node]:
                self._next[node][char] = len(self._next)
                self._next.append({})
                self._depth.append(depth)
                self._found.append(None)
            node = self._next[node][char]
        self._found[node] = stop

    def _links(self) -> list[int]:
        """For each node the longest proper suffix that is also a node; a stop found there is found here."""
        links = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            parent = queue.popleft()
            for char, node in self._next[parent].items():
                suffix = links[parent]
                while suffix and char not in self._next[suffix]:
                    suffix = links[suffix]
                links[node] = self._next[suffix].get(char, 0)
                self._found[node] = self._found[node] or self._found[links[node]]
                queue.append(node)
        return links
