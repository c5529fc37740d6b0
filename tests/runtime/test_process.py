"""Settings of the whole process: held while anyone needs them, then put back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jitney.runtime.process import SWITCH_INTERVAL_S, WAIT_POLICY, OpenMpWaiting, SwitchInterval


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


def test_torch_loads_with_threads_that_sleep_and_the_environment_is_put_back() -> None:
    code = """
import os
from jitney.runtime.process import WAIT_POLICY, OpenMpWaiting
waiting = OpenMpWaiting()
assert not waiting.sleeps
with waiting.sleeping():
    assert os.environ[WAIT_POLICY] == "PASSIVE"
    import torch
assert waiting.sleeps and WAIT_POLICY not in os.environ
"""
    clean = {name: value for name, value in os.environ.items() if name != WAIT_POLICY}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean)


def test_a_users_choice_of_waiting_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_POLICY, "active")
    waiting = OpenMpWaiting()
    with waiting.sleeping():
        assert os.environ[WAIT_POLICY] == "active"
    assert not waiting.sleeps
    monkeypatch.setenv(WAIT_POLICY, "passive")
    assert OpenMpWaiting().sleeps
