"""Stop strings: every way to cut every short text gives what the whole text gives."""

from __future__ import annotations

import itertools
import random

import pytest

from jitney.runtime.text.stops import StopMatcher

STOP_SETS = [
    ("ab", "bc", "abc"),
    ("aab",),
    ("aa", "aba"),
    ("abcab", "bca", "c" * 4),
]


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The stop that ends first; of those that end together the longest."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    end, negative_length, stop = min(found)
    return text[: end + negative_length], stop


def streamed(pieces: list[str], stops: tuple[str, ...], include: bool = False) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include=include)
    shown = ""
    for piece in pieces:
        part, stop = matcher.push(piece)
        shown += part
        if stop is not None:
            return shown, stop
    return shown + matcher.flush(), None


def splits(text: str) -> list[list[str]]:
    """Every way to cut a text into pieces of at least one character."""
    ways = []
    for cuts in itertools.product((False, True), repeat=max(len(text) - 1, 0)):
        pieces, start = [], 0
        for end, cut in enumerate(cuts, 1):
            if cut:
                pieces.append(text[start:end])
                start = end
        ways.append([*pieces, text[start:]])
    return ways


def check_all(stops: tuple[str, ...], longest: int) -> None:
    for length in range(longest + 1):
        for letters in itertools.product("abc", repeat=length):
            text = "".join(letters)
            want = expected(text, stops)
            for pieces in splits(text):
                assert streamed(pieces, stops) == want, (pieces, stops)


@pytest.mark.parametrize("stops", STOP_SETS)
def test_every_split_of_every_short_text(stops: tuple[str, ...]) -> None:
    check_all(stops, 7)


@pytest.mark.large
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stops", STOP_SETS)
def test_every_split_of_every_text_up_to_eight(stops: tuple[str, ...]) -> None:
    check_all(stops, 8)


def random_stop_set(random_: random.Random) -> tuple[str, ...]:
    count = random_.randint(1, 3)
    return tuple("".join(random_.choices("abc", k=random_.randint(1, 5))) for _ in range(count))


def check_random(rounds: int) -> None:
    random_ = random.Random(7)
    for _ in range(rounds):
        stops = random_stop_set(random_)
        text = "".join(random_.choices("abc", weights=(5, 3, 1), k=random_.randint(0, 60)))
        cuts = sorted(random_.choices(range(len(text) + 1), k=random_.randint(0, 8)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        shown, stop = expected(text, stops)
        assert streamed(pieces, stops) == (shown, stop)
        assert streamed(pieces, stops, include=True) == (shown + (stop or ""), stop)


def test_random_stop_sets_and_longer_texts() -> None:
    check_random(10_000)


@pytest.mark.large
def test_many_random_stop_sets_and_longer_texts() -> None:
    check_random(200_000)


def test_holds_back_only_what_may_become_a_stop() -> None:
    matcher = StopMatcher(["</s>", "STOP"])
    assert matcher.push("a <") == ("a ", None)
    assert matcher.push("b </") == ("<b ", None)
    assert matcher.push("st") == ("</st", None)
    assert matcher.push("ST") == ("", None)
    assert matcher.flush() == "ST"


def test_work_is_linear_in_the_text() -> None:
    """A text of one letter against a stop of that letter: the worst case of restarting at each position."""
    text = "a" * 200_000
    assert streamed([text], ("a" * 255 + "b",)) == (text, None)
