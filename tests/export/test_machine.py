"""What an export tries out for its machine: the choice is that of a start, and one matrix is held at a time."""

from __future__ import annotations

import weakref

import pytest
import torch
from tiny_models import random_weights, small_llama
from torch import Tensor

from jitney.export import machine
from jitney.export.machine import OUTPUTS, tiles_here
from jitney.runtime.config import EngineConfig
from jitney.runtime.model import linear_plain
from jitney.runtime.model.layers import load_layers
from jitney.runtime.model.program import Program
from jitney.runtime.steps.kernels import Kernels, choose_kernels, find_tile, model_tile
from jitney.runtime.steps.layout import Tile
from jitney.runtime.steps.machine_tiles import tile_choice
from jitney.runtime.weights.manifest import Limits

MODEL = small_llama(vocab_size=3 * OUTPUTS + 17, num_layers=1)
PLAIN = Kernels(torch.float32, linear_plain, 4, 16)


@pytest.fixture(autouse=True)
def torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "why_not", lambda *_: "the test says so")


@pytest.mark.parametrize("kernels", [PLAIN, choose_kernels(MODEL, EngineConfig(device="cpu"))])
def test_an_export_chooses_what_a_start_would(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "choose_kernels", lambda *_: kernels)
    choices, before = tiles_here(MODEL, Limits(max_batch_tokens=128)), torch.get_num_threads()
    layers = load_layers(MODEL, random_weights(MODEL), kernels.linears.pack, kernels.dtype, 32)
    assert choices
    try:
        for choice in choices:
            torch.set_num_threads(choice.num_threads)
            with torch.inference_mode():
                tile = model_tile(Program(kernels.linears), MODEL, layers, kernels, 128)
            assert choice == tile_choice(kernels, 128, tile)
    finally:
        torch.set_num_threads(before)


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


def test_a_tile_is_independent_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in those that were tried before another layer ruled a larger one out."""

    class Library:
        """Rows differ by how many there are from `outputs` on, as they do of a library that picks by shape."""

        @staticmethod
        def linear(x: Tensor, weights: dict[str, Tensor], tile: int) -> Tensor:
            return x.sum(1) + (len(x) // int(weights["rows"]))

    layers = [(4, {"rows": torch.tensor(rows)}) for rows in (1000, 100, 1000, 20)]
    tiles = [find_tile(Library, layers[:count], torch.float32, 512) for count in (1, 2, 3, 4)]  # type: ignore[arg-type]
    assert tiles == [Tile(2, 512), Tile(2, 32), Tile(2, 32), Tile(32, 32)]
