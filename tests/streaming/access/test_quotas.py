"""What a key may use: at its bound, one above, and after a while."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jitney.runtime.errors import InvalidField, QueueFull
from jitney.streaming.access.keys import Key, KeyRing, digest_of
from jitney.streaming.access.quotas import Quotas, granted_s


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def key(**fields: Any) -> Key:
    return Key(name="a", sha256=digest_of("x"), **fields)


def quotas(max_sockets: int = 100, **fields: Any) -> tuple[Quotas, Clock]:
    clock = Clock()
    return Quotas(KeyRing([key(**fields)], None, clock), max_sockets=max_sockets, clock=clock), clock


def test_so_many_answers_at_a_time() -> None:
    desk, _ = quotas(concurrency=2)
    desk.enter("a")
    desk.enter("a")
    with pytest.raises(QueueFull, match="'a' may have 2 answers"):
        desk.enter("a")
    desk.enter("")  # nobody in particular
    desk.leave("a")
    desk.enter("a")


def test_so_many_tokens_a_minute_on_average() -> None:
    desk, clock = quotas(tokens_per_minute=60)
    desk.enter("a")
    desk.charge("a", 59)
    desk.enter("a")
    desk.charge("a", 31)
    with pytest.raises(QueueFull, match="60 tokens a minute") as refused:
        desk.enter("a")
    assert refused.value.retry_after_s == 31
    clock.now = 30.0
    with pytest.raises(QueueFull):
        desk.enter("a")
    clock.now = 31.0
    desk.enter("a")
    clock.now = 10_000.0
    desk.enter("a")
    desk.charge("a", 60)  # what was saved up is no more than a minute's
    with pytest.raises(QueueFull):
        desk.enter("a")


def test_so_many_sockets_of_a_key_and_of_all() -> None:
    desk, _ = quotas(max_sockets=3, connections=2)
    with ExitStack() as open_sockets:
        open_sockets.enter_context(desk.connected("a"))
        open_sockets.enter_context(desk.connected("a"))
        with pytest.raises(QueueFull):
            desk.connected("a")
        open_sockets.enter_context(desk.connected(""))
        with pytest.raises(QueueFull):
            desk.connected("")
    with desk.connected("a"):
        pass


@pytest.mark.parametrize(
    ("wishes", "fields", "expected"),
    [
        ((0, None), {}, None),
        ((-100, 1e6), {}, 1e6),
        ((5, None), {"highest_priority": 5}, None),
        ((0, None), {"longest_deadline_s": 9.0}, 9.0),
        ((0, 9.0), {"longest_deadline_s": 9.0}, 9.0),
        ((0, 1.0), {"longest_deadline_s": 9.0}, 1.0),
    ],
)
def test_what_a_key_grants(wishes: tuple[int, float | None], fields: Any, expected: float | None) -> None:
    assert granted_s(*wishes, key(**fields)) == expected
    assert granted_s(*wishes, None) == wishes[1]


@pytest.mark.parametrize(
    ("wishes", "fields", "named"),
    [
        ((4, None), {"highest_priority": 5}, "priority"),
        ((0, 9.001), {"longest_deadline_s": 9.0}, "deadline_s"),
    ],
)
def test_what_a_key_does_not_grant_is_refused_by_name(
    wishes: tuple[int, float | None], fields: Any, named: str
) -> None:
    with pytest.raises(InvalidField) as refused:
        granted_s(*wishes, key(**fields))
    assert refused.value.field == named


def test_a_limit_that_is_set_later_starts_without_debt(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.toml", Clock()
    table = f'[[key]]\nname = "a"\nsha256 = "{digest_of("x")}"\n'
    path.write_text(table)
    ring = KeyRing([], path, clock)
    desk = Quotas(ring, max_sockets=1, clock=clock)
    desk.enter("a")
    desk.charge("a", 1_000_000)
    desk.leave("a")
    path.write_text(f"{table}tokens_per_minute = 60\n")
    clock.now = 10.0
    assert ring.refresh() == set()
    desk.enter("a")
