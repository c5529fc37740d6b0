"""The switch interval: lowered while anyone holds it, put back when the last lets go."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from jitney.runtime.process import SWITCH_INTERVAL_S, SwitchInterval


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_held_while_any_holder_remains() -> None:
    sys.setswitchinterval(0.005)
    interval = SwitchInterval()
    for _ in range(3):
        interval.acquire()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    interval.release()
    interval.release()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    interval.release()
    assert sys.getswitchinterval() == pytest.approx(0.005)


def test_a_second_round_restores_what_was_set_between() -> None:
    interval = SwitchInterval()
    interval.acquire()
    interval.release()
    sys.setswitchinterval(0.002)
    interval.acquire()
    interval.release()
    assert sys.getswitchinterval() == pytest.approx(0.002)


def test_a_shorter_interval_is_left_alone() -> None:
    sys.setswitchinterval(1e-5)
    interval = SwitchInterval()
    interval.acquire()
    assert sys.getswitchinterval() == pytest.approx(1e-5)
    interval.release()
    assert sys.getswitchinterval() == pytest.approx(1e-5)
