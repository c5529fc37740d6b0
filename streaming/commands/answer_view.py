"""How an answer looks as it is written: Markdown in a terminal, its bare text everywhere else."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

REDRAW_S = 0.08
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
"""Characters with which an answer could steer the terminal; new lines and tabs are not among them."""


class PlainAnswer:
    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def end(self) -> None:
        """The answer is over, or broken off."""
        self.write("\n")


class RichAnswer:
    """Blocks that are complete are printed for good; only the last one is drawn again as it grows, so that an answer
    may be longer than the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._drawn_at = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def write(self, text: str) -> None:
        self._open += text.translate(CONTROLS)
        done, self._open = split_blocks(self._open)
        if done:
            self._live.update("")
            self._console.print(_drawn(done))
            self._console.print()
        if done or time.monotonic() - self._drawn_at > REDRAW_S:
            self._drawn_at = time.monotonic()
            self._live.update(_drawn(self._open), refresh=True)

    def end(self) -> None:
        self._live.update("")
        self._live.stop()
        if self._open.strip():
            self._console.print(_drawn(self._open))


AnswerView = PlainAnswer | RichAnswer


def answer_view() -> AnswerView:
    return RichAnswer(Console(highlight=False)) if sys.stdout.isatty() else PlainAnswer()


def _drawn(text: str) -> Markdown:
    """Links show where they lead."""
    return Markdown(text, hyperlinks=False)


def split_blocks(text: str) -> tuple[str, str]:
    """The blocks that nothing can change any more, and the rest: from after the last blank line that is followed by
    the beginning of a new block, outside of fenced code and lists."""
    at, end, fence, is_list = 0, 0, "", False
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        mark = line.lstrip()
        if fence:
            fence = "" if mark.startswith(fence) else fence
        elif mark.startswith(("```", "~~~")):
            fence = mark[:3]
        elif line.strip():
            is_list = _is_item(mark) or (is_list and line[0].isspace())
        following = lines[number + 1] if number + 1 < len(lines) else ""
        at += len(line)
        if not fence and not line.strip() and following.strip():
            continues = is_list and (following[0].isspace() or _is_item(following))
            end = end if continues else at
    return text[:end].rstrip("\n"), text[end:]


def _is_item(line: str) -> bool:
    head = line.split(maxsplit=1)[:1]
    return bool(head) and (head[0] in ("-", "*", "+") or head[0].rstrip(".)").isdecimal())
