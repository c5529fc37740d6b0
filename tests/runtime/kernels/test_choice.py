"""Choices of kernels by rule fit what split products work in, for every shape: what does not would write past it."""

from __future__ import annotations

from itertools import product

import pytest

pytest.importorskip("triton")

from jitney.runtime.kernels.choice import LIBRARY, MEASURED, Task, candidates, default_choice

OUTPUTS = (768, 2048, 32000, 49152, 50257, 57344, 65536, 128256, 151936, 262144)
INPUTS = (576, 768, 2048, 4096, 8192, 14336)
ROWS = (1, 8, 16, 17, 32, 48, 64, 65, 128, 200, 256, 257, 1024)
KINDS = [
    {},
    {"normed": True},
    {"gated": True},
    {"normed": True, "gated": True},
    {"added": True},
]


@pytest.mark.parametrize("bits, weight_only", [(8, False), (8, True), (16, False), (32, False)])
def test_default_choices_stay_within_the_workspace(bits: int, weight_only: bool) -> None:
    for (n, k), rows, kind in product(product(OUTPUTS, INPUTS), ROWS, KINDS):
        task = Task(n, k, rows, bits, **kind, weight_only=weight_only)
        assert default_choice(task).fits(task), task


def test_measured_choices_stay_within_the_workspace() -> None:
    for key, choice in MEASURED.items():
        shape, _, rows, *_ = key.split("-")
        n, k = map(int, shape.split("x"))
        task = Task(n, k, int(rows[1:]), 16, added=True)
        assert task.key == key
        assert choice.fits(task)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [(64, "product"), (65, "product"), (256, "product"), (257, "library"), (512, "wide_gated")],
)
def test_gates_are_applied_by_the_product_where_that_was_measured_to_be_faster(rows: int, kind: str) -> None:
    task = Task(8192, 2048, rows, 16, normed=True, gated=True)
    choice = default_choice(task)
    assert choice.kind == kind and (kind != "product" or choice.rows >= rows)
    assert default_choice(task._replace(gated=False, added=True, num_rows=200)) == LIBRARY
    large = task._replace(num_outputs=14336, num_rows=2 * rows)
    assert default_choice(large).kind == {64: "product", 512: "wide_gated"}.get(rows, "library")
    assert default_choice(large._replace(num_inputs=4095)).kind != "wide_gated"
    assert all(each.fits(task) for each in candidates(task)) and LIBRARY in candidates(task)
