"""Settings of the whole process: held while anyone needs them, then put back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jitney.runtime.process import SPIN_COUNT, SWITCH_INTERVAL_S, WAIT_POLICY, SwitchInterval, short_spins


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


def test_torch_loads_with_short_spins_and_the_environment_is_put_back() -> None:
    code = """
import os
from jitney.runtime.process import SPIN_COUNT, short_spins
with short_spins():
    assert os.environ[SPIN_COUNT] == "20000"
    import torch
assert SPIN_COUNT not in os.environ
with short_spins():
    assert SPIN_COUNT not in os.environ, "too late: torch is loaded"
"""
    clean = {name: value for name, value in os.environ.items() if name not in (SPIN_COUNT, WAIT_POLICY)}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean)


def test_a_users_choice_of_spinning_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPIN_COUNT, "7")
    with short_spins():
        assert os.environ[SPIN_COUNT] == "7"
    assert os.environ[SPIN_COUNT] == "7"
