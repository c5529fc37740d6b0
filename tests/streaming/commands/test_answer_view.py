"""An answer in a terminal: blocks are cut where nothing can change them any more, and each is printed once."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from jitney.streaming.commands.answer_view import RichAnswer, split_blocks

TEXT = """# Title

A paragraph
of two lines.

- one

  still one
- two

```python
a = 1

b = 2
```

The end."""


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("", ""),
        ("a", ""),
        ("a\n\n", ""),
        ("a\n\nb", "a"),
        ("a\n\nb\n\nc", "a\n\nb"),
        ("```\na\n\nb\n\nc", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```"),
        ("- a\n\n- b\n\n  c", ""),
        ("1. a\n\n2. b\n\nc", "1. a\n\n2. b"),
    ],
)
def test_what_is_certain(text: str, done: str) -> None:
    found, rest = split_blocks(text)
    assert found == done and (text.startswith(found) and text.endswith(rest))


@pytest.mark.parametrize("seed", range(5))
def test_the_screen_holds_every_block_once(seed: int) -> None:
    rng, screen = random.Random(seed), io.StringIO()
    view = RichAnswer(Console(file=screen, force_terminal=False, width=60))
    left = TEXT
    while left:
        cut = rng.randrange(1, 8)
        view.write(left[:cut])
        left = left[cut:]
    view.end()
    shown = screen.getvalue()
    for once in ("Title", "A paragraph of two lines.", "still one", "two", "a = 1", "b = 2", "The end."):
        assert shown.count(once) == (2 if once == "two" else 1), (once, shown)


def test_an_answer_cannot_steer_the_terminal() -> None:
    screen = io.StringIO()
    view = RichAnswer(Console(file=screen, force_terminal=False, width=60))
    view.write("a\x1b[2Jb\x07\x9b31mc [d](https://example.com/e)")
    view.end()
    assert screen.getvalue().strip() == "a[2Jb31mc d (https://example.com/e)"
