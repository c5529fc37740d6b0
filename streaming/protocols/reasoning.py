"""A model's reasoning and its answer, told apart as the text comes: pure, and the same however the text is cut.

Reasoning stands between two markers at the very beginning: the model writes the opening one, or its template has
written it at the end of the prompt. Markers later in the answer are text. White space next to the markers is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...runtime.backend import Tokenizer

TAIL_TOKENS = 24
"""More than any template writes between the opening marker and the answer."""


class Split(NamedTuple):
    """What a piece of text adds to either."""

    reasoning: str = ""
    text: str = ""


class ReasoningSplitter:
    """`push` pieces, then `flush` once. `markers` None: all is text. `is_inside`: the prompt opened the reasoning.

    `state` is "undecided" until the first visible character, then "reasoning", then "text", for good.
    """

    def __init__(self, markers: tuple[str, str] | None, *, is_inside: bool = False) -> None:
        self._open, self._close = markers or ("", "")
        self.state = "text" if markers is None else "reasoning" if is_inside else "undecided"
        self._held = ""
        self._strips = is_inside
        """Whether white space is dropped until the next visible character."""

    @property
    def is_past(self) -> bool:
        """Whether all that comes is text, as it comes."""
        return self.state == "text" and not self._strips

    def push(self, piece: str) -> Split:
        if self.is_past:
            return Split(text=piece)
        self._held += piece
        if self.state == "undecided":
            self._decide()
        if self._strips:
            self._strip()
        reasoning = self._reason() if self.state == "reasoning" else ""
        return Split(reasoning, self._answer() if self.state == "text" else "")

    def flush(self) -> Split:
        """What was held back: it was no marker after all."""
        held, self._held = self._held, ""
        return Split(reasoning=held) if self.state == "reasoning" else Split(text=held)

    def _decide(self) -> None:
        seen = self._held.lstrip()
        if seen.startswith(self._open):
            self.state, self._held, self._strips = "reasoning", seen[len(self._open) :], True
        elif not self._open.startswith(seen):
            self.state = "text"

    def _reason(self) -> str:
        """The reasoning that is certain: not what may be the closing marker, nor white space before it."""
        before, marker, after = self._held.partition(self._close)
        if marker:
            self.state, self._held, self._strips = "text", after, True
            self._strip()
            return before.rstrip()
        certain = self._held[: len(self._held) - _overlap(self._held, self._close)].rstrip()
        self._held = self._held[len(certain) :]
        return certain

    def _answer(self) -> str:
        text, self._held = self._held, ""
        return text

    def _strip(self) -> None:
        self._held = self._held.lstrip()
        self._strips = not self._held


def splitter(tokenizer: Tokenizer, prompt: Sequence[int]) -> ReasoningSplitter:
    """For the answer to a conversation that was rendered into `prompt`."""
    markers = tokenizer.reasoning_markers
    if markers is None:
        return ReasoningSplitter(None)
    tail = tokenizer.decode(prompt[-TAIL_TOKENS:], skip_special_tokens=False)
    return ReasoningSplitter(markers, is_inside=tail.rstrip().endswith(markers[0]))


def split_whole(splitter: ReasoningSplitter, text: str) -> Split:
    """A whole answer's text."""
    split, rest = splitter.push(text), splitter.flush()
    return Split(split.reasoning + rest.reasoning, split.text + rest.text)


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if marker.startswith(text[-n:])), 0)
