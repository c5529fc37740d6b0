"""Philox against Random123's published vectors, and the uniform against its definition."""

from __future__ import annotations

import pytest

from jitney.runtime.steps.philox import philox4x32, uniform

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_published_vectors(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    assert philox4x32(counter, key) == words


def test_uniform_depends_on_all_four_and_nothing_else() -> None:
    base = uniform(5, 0, 10)
    others = [
        uniform(6, 0, 10),
        uniform(5 + 2**32, 0, 10),
        uniform(5, 1, 10),
        uniform(5, 0, 11),
        uniform(5, 0, 10, 1),
    ]
    assert base == uniform(5, 0, 10)
    assert len({base, *others}) == 6


def test_uniform_is_uniform() -> None:
    counts = [0] * 10
    for position in range(5000):
        number = uniform(2**64 - 1, 3, position)
        assert 0.0 <= number < 1.0
        counts[int(number * 10)] += 1
    assert (
        sum((count - 500) ** 2 / 500 for count in counts) < 27.9
    )  # chi-square, 9 degrees, one in a thousand
