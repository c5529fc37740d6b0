"""What an export tries out for its machine: a tile for all layers, with one matrix in memory at a time."""

from __future__ import annotations

import weakref

import pytest
import torch
from tiny_models import small_llama
from torch import Tensor

from jitney.export import machine
from jitney.export.machine import tiles_here
from jitney.runtime.model import linear_plain
from jitney.runtime.steps import kernels
from jitney.runtime.steps.kernels import OUTPUTS, Kernels, find_tile
from jitney.runtime.steps.layout import Tile
from jitney.runtime.weights.manifest import Limits

MODEL = small_llama(vocab_size=3 * OUTPUTS + 17, num_layers=1)
PLAIN = Kernels(torch.float32, linear_plain, 4, 16)


@pytest.fixture(autouse=True)
def torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "why_not", lambda *_: "the test says so")


def test_one_packed_matrix_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held: set[int] = set()
    outputs: list[int] = []

    def pack(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        assert not held
        packed = {"weight": weight.clone()}
        held.add(len(outputs))
        weakref.finalize(packed["weight"], held.remove, len(outputs))
        outputs.append(len(weight))
        return packed

    monkeypatch.setattr(linear_plain, "pack", pack)
    monkeypatch.setattr(machine, "choose_kernels", lambda *_: PLAIN)
    choices = tiles_here(MODEL, Limits())
    assert outputs == [320, 192, 768, 192, OUTPUTS + 17] * len(choices)
    assert not held


def test_some_outputs_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    some = tiles_here(MODEL, Limits(max_batch_tokens=128))
    monkeypatch.setattr(kernels, "OUTPUTS", MODEL.vocab_size)
    assert some and some == tiles_here(MODEL, Limits(max_batch_tokens=128))


def test_a_tile_is_independent_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in those that were tried before another layer ruled a larger one out."""

    class Library:
        """As one that picks by shape: rows differ by how many there are, up to a number of each layer's."""

        @staticmethod
        def linear(x: Tensor, weights: dict[str, Tensor], tile: int) -> Tensor:
            return x.sum(1) + (len(x) // int(weights["rows"]))

    layers = [(4, {"rows": torch.tensor(rows)}) for rows in (1000, 100, 1000, 20)]
    tiles = []
    for count in (1, 2, 3, 4):
        monkeypatch.setattr(kernels, "_drawn", lambda *_, count=count: layers[:count])
        tiles.append(find_tile(Library, MODEL, PLAIN, 512))  # type: ignore[arg-type]
    assert tiles == [Tile(2, 512), Tile(2, 32), Tile(2, 32), Tile(32, 32)]
