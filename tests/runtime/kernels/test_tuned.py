"""Measured choices: what wins, and a cache that survives anything."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import pytest

from jitney.runtime.kernels.choice import LIBRARY, Choice, Task, candidates, default_choice
from jitney.runtime.kernels.tuned import choices_file, load_choices, store_choices, tune

TASK = Task(num_outputs=1024, num_inputs=2048, num_rows=16, weight_bits=16, added=True)


def test_choices_come_back_as_they_were_kept(tmp_path: Path) -> None:
    path = choices_file(tmp_path, "NVIDIA H100 80GB HBM3")
    assert path.name.startswith("nvidia-h100-80gb-hbm3-v")
    assert load_choices(path) == {}
    choices = {TASK.key: default_choice(TASK), "other": LIBRARY}
    store_choices(path, choices)
    assert load_choices(path) == choices
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"a": {"kind": "magic"}}', b'{"a": {"kind": "gemv", "x": 1}}']
)
def test_a_file_of_something_else_is_said_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "choices.json"
    path.write_bytes(content)
    assert load_choices(path) == {}
    assert len(caplog.records) == 1 and str(path) in caplog.text


def test_an_unwritable_cache_is_said_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kernels").write_text("a file where a folder should be")
    store_choices(choices_file(tmp_path, "card"), {TASK.key: LIBRARY})
    assert len(caplog.records) == 1


def test_the_fastest_candidate_wins_and_what_is_known_is_not_measured() -> None:
    measured: list[Task] = []

    def measure(task: Task, choice: Choice) -> float:
        measured.append(task)
        return 1.0 if choice == LIBRARY else float("inf")

    known = TASK._replace(num_rows=1)
    choices = tune([TASK, known], measure, {known.key: default_choice(known)})
    assert choices == {TASK.key: LIBRARY, known.key: default_choice(known)}
    assert set(measured) == {TASK}


@pytest.mark.parametrize("gain, wins", [(0.0, False), (0.02, False), (0.05, True)])
def test_the_built_in_choice_stays_unless_another_is_clearly_faster(gain: float, wins: bool) -> None:
    choices = tune([TASK], lambda _, choice: 1.0 - gain if choice == LIBRARY else 1.0, {})
    assert choices == {TASK.key: LIBRARY if wins else default_choice(TASK)}


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize(
    "outputs, inputs", [(1024, 3072), (3072, 896), (28672, 4096), (151936, 1024), (48, 80)]
)
def test_every_candidate_can_run(bits: int, outputs: int, inputs: int) -> None:
    extras = ((True, False, False), (True, True, False), (False, False, True))
    for rows, (normed, gated, added) in product((1, 2, 8, 16, 24, 32, 48, 64, 65, 500, 4096), extras):
        task = Task(outputs, inputs, rows, bits, normed, gated, added)
        assert default_choice(task) in candidates(task)
        for choice in candidates(task):
            assert choice.fits(task)
            assert not choice.fuses_norm or choice.kind in ("gemv", "resident")


def test_a_bucket_has_one_name() -> None:
    assert TASK._replace(num_rows=9).key == TASK.key != TASK._replace(num_rows=17).key
    assert msgspec.json.decode(msgspec.json.encode(LIBRARY), type=Choice) == LIBRARY
