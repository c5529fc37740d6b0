"""Reasoning and answer are told apart the same way at every cut."""

from __future__ import annotations

import random
import re
from itertools import combinations

import pytest

from jitney.runtime.testing import ByteTokenizer
from jitney.streaming.protocols.reasoning import ReasoningSplitter, Split, split_whole, splitter

THINK = ("<think>", "</think>")


def whole(text: str, markers: tuple[str, str] | None = THINK, is_inside: bool = False) -> Split:
    """The naive twin: one look at the whole text."""
    if markers is None:
        return Split("", text)
    begin, end = markers
    if not is_inside:
        if not text.lstrip().startswith(begin):
            return Split("", text)
        text = text.lstrip().removeprefix(begin)
    inside, closed, after = text.lstrip().partition(end)
    return Split(inside.rstrip(), after.lstrip()) if closed else Split(inside, "")


def pushed(pieces: list[str], is_inside: bool = False) -> Split:
    splitting = ReasoningSplitter(THINK, is_inside=is_inside)
    splits = [splitting.push(piece) for piece in pieces] + [splitting.flush()]
    return Split("".join(split.reasoning for split in splits), "".join(split.text for split in splits))


TEXTS = [
    ("", False),
    ("Hello.", False),
    ("<think>a b</think>c", False),
    (" \n<think>\n a\n\n</think>\n\n b ", False),
    ("<think></think>x", False),
    ("<think>never closed </thin", False),
    ("<thinner than that", False),
    ("<thi", False),
    ("  ", False),
    ("a<think>b</think>", False),
    ("<think>a</think>b<think>c</think>d", False),
    ("<think>a<</think>/think></think>b", False),
    ("\nwell, then</think>\n\nyes", True),
    ("</think>yes", True),
    ("no end", True),
    ("<think>", True),
]


@pytest.mark.parametrize(("text", "is_inside"), TEXTS)
def test_every_cut_gives_what_the_whole_gives(text: str, is_inside: bool) -> None:
    expected = whole(text, is_inside=is_inside)
    for count in range(3):
        for cuts in combinations(range(1, max(len(text), 1)), count):
            edges = [0, *cuts, len(text)]
            pieces = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
            assert pushed(pieces, is_inside) == expected, pieces
    assert pushed(list(text), is_inside) == expected


def test_random_texts_of_marker_pieces() -> None:
    rng = random.Random(0)
    for _ in range(10_000):
        text = "".join(rng.choices(["<think>", "</think>", "<", "/think>", "thi", " ", "\n", "a", "b "], k=8))
        is_inside = rng.random() < 0.3
        pieces = re.findall(f".{{1,{rng.randint(1, 9)}}}", text, re.DOTALL)
        assert pushed(pieces, is_inside) == whole(text, is_inside=is_inside), pieces


def test_nothing_certain_is_held_back() -> None:
    splitting = ReasoningSplitter(THINK)
    assert splitting.push("<think>a </") == Split("a", "")
    assert splitting.push("b") == Split(" </b", "")
    assert splitting.push("</think>c") == Split("", "c")
    assert splitting.push("</think> ") == Split("", "</think> "), "after the first, markers are text"


def test_without_markers_all_is_text() -> None:
    assert split_whole(ReasoningSplitter(None), "<think>a</think>b") == Split("", "<think>a</think>b")


def test_a_template_that_opens_the_reasoning_in_the_prompt() -> None:
    tokenizer = ByteTokenizer(reasons=True)
    opened = splitter(tokenizer, list(b"user: hi\nassistant:\n<think>\n"))
    assert split_whole(opened, "hm</think>yes") == Split("hm", "yes")
    switched_off = splitter(tokenizer, list(b"assistant:\n<think>\n\n</think>\n\n"))
    assert split_whole(switched_off, "yes") == Split("", "yes")
    assert splitter(ByteTokenizer(), list(b"<think>")).state == "text"
