"""Where each number of a matrix lies once it is packed, by the formula that packing.py tells in words."""

from __future__ import annotations

import pytest
import torch
from tiny_models import small_llama
from torch import Tensor
from torch.nn.functional import pad

from jitney.runtime.native.library import library
from jitney.runtime.native.packing import Packer, filled, tiled_bytes

KERNELS = library().kernels


def tiled(rows: Tensor) -> Tensor:
    """The naive twin: 32-bit words [panels, steps, 2, 16, 16], in this order in memory."""
    rows = pad(rows, (0, 0, 0, -rows.size(0) % 32)).contiguous()
    words = rows.view(torch.int32).view(len(rows) // 32, 2, 16, -1, 16)
    return words.permute(0, 3, 1, 4, 2).contiguous()


def numbers(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(rows * columns).remainder(251).sub(125).view(rows, columns).to(dtype)


@pytest.mark.skipif(KERNELS is None, reason=library().reason)
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 32, 50, 96])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_rows_are_packed_as_the_formula_says(dtype: torch.dtype, num_rows: int) -> None:
    assert KERNELS is not None
    rows = numbers(num_rows, 256, dtype)
    packer = Packer(KERNELS, 96 * 256 * 2)
    if dtype == torch.int8:
        packed = packer.pack_rounded(rows, torch.ones(num_rows), None)["weight"]
    else:
        packed = packer.pack(rows, None)["weight"]
    assert packed.data_ptr() % 64 == 0
    assert torch.equal(packed, tiled(rows).view(torch.uint8).flatten())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_number_lies_where_the_tiles_want_it(dtype: torch.dtype) -> None:
    rows = numbers(96, 256, dtype)
    per_word = 4 // rows.itemsize
    words = tiled(rows)
    found = words.view(dtype).view(*words.shape, per_word)
    for output, column in [(0, 0), (1, 0), (0, 1), (15, 3), (16, 0), (31, 64), (32, 5), (95, 255), (50, 130)]:
        step, rest = divmod(column, 16 * per_word)
        line, part = divmod(rest, per_word)
        panel, tile, lane = output // 32, output % 32 // 16, output % 16
        assert found[panel, step, tile, line, lane, part] == rows[output, column]


@pytest.mark.skipif(KERNELS is None, reason=library().reason)
@pytest.mark.parametrize(("itemsize", "gated"), [(1, True), (2, True), (2, False)])
def test_a_model_fills_the_packers_array(itemsize: int, gated: bool) -> None:
    assert KERNELS is not None
    model = small_llama(num_layers=2, vocab_size=500, gated_mlp=gated)
    packer = Packer(KERNELS, tiled_bytes(model, itemsize))
    shapes = [(320, 192), (192, 192), (384 * (1 + gated), 192), (192, 384)] * 2 + [(500, 192)]
    pack = packer.pack_int8 if itemsize == 1 else packer.pack
    packed = [pack(torch.randn(shape), None)["weight"] for shape in shapes]
    assert sum(words.nbytes for words in packed) == tiled_bytes(model, itemsize)


def test_values_reach_to_the_end_of_a_panel() -> None:
    assert filled(torch.ones(33)).tolist() == [1.0] * 33 + [0.0] * 31
