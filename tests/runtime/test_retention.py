"""Finished responses go by age and by bytes, the oldest first."""

from __future__ import annotations

from jitney.runtime.retention import Retention


def test_by_age() -> None:
    kept = Retention(max_age_s=10, max_bytes=100)
    assert kept.next_expiry is None
    kept.keep("a", 1, 0.0)
    kept.keep("b", 1, 5.0)
    assert kept.next_expiry == 10 and kept.expired(10) == []
    assert kept.expired(10.5) == ["a"] and kept.next_expiry == 15
    assert "b" in kept and "a" not in kept


def test_by_bytes() -> None:
    kept = Retention(max_age_s=10, max_bytes=100)
    for number in range(4):
        kept.keep(str(number), 40, 0.0)
    assert kept.expired(0) == ["0", "1"] and kept.num_bytes == 80
    kept.remove("2")
    assert kept.num_bytes == 40 and kept.expired(0) == []
    kept.keep("whale", 101, 0.0)
    assert kept.expired(0) == ["3", "whale"] and kept.num_bytes == 0
