"""What is timed is the task itself, by the choice that was asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from jitney.runtime.kernels import stopwatch
from jitney.runtime.kernels.choice import LIBRARY, Choice, Task
from jitney.runtime.kernels.stopwatch import Stopwatch

SPLIT = Choice("product", block_n=32, block_k=32, splits=2, stages=2, rows=16)
TASKS = [
    Task(48, 64, 3, 16, normed=True),
    Task(48, 64, 3, 16, normed=True, gated=True),
    Task(48, 64, 3, 8, added=True),
    Task(48, 64, 3, 16),
]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    def launched(launch: Callable[[], None]) -> float:
        launch()
        return 1.0

    monkeypatch.setattr(stopwatch, "replay_time", launched)
    monkeypatch.setattr(stopwatch, "MAX_COPIES", 2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Stopwatch(device, pool_bytes=1 << 16, most_rows=4, widest=64)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("choice", [SPLIT, LIBRARY])
def test_seconds_are_of_one_call(watch: Stopwatch, task: Task, choice: Choice) -> None:
    assert watch(task, choice) == 0.5


def test_a_launch_alone_takes_no_time(watch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(stopwatch, "replay_time")
    watch.launch(TASKS[0], SPLIT)


def test_what_cannot_run_takes_forever(watch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(launch: Callable[[], None]) -> float:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(stopwatch, "replay_time", refused)
    assert watch(TASKS[0], SPLIT) == float("inf")
