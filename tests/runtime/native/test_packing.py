"""Where each number of a matrix lies once it is packed."""

from __future__ import annotations

import pytest
import torch
from tiny_models import small_llama

from jitney.runtime.native.packing import Packer, filled, tiled, tiled_bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_number_lies_where_the_tiles_want_it(dtype: torch.dtype) -> None:
    rows = torch.arange(96 * 256).remainder(251).view(96, 256).to(dtype)
    words = tiled(rows).contiguous()
    per_word = 4 // rows.itemsize
    assert words.shape == (3, 256 * rows.itemsize // 64, 2, 16, 16)
    numbers = words.view(dtype).view(*words.shape, per_word)
    for output, column in [(0, 0), (1, 0), (0, 1), (15, 3), (16, 0), (31, 64), (32, 5), (95, 255), (50, 130)]:
        step, rest = divmod(column, 16 * per_word)
        line, part = divmod(rest, per_word)
        panel, tile, lane = output // 32, output % 32 // 16, output % 16
        assert numbers[panel, step, tile, line, lane, part] == rows[output, column]


def test_missing_rows_and_columns_are_zeros() -> None:
    rows = torch.ones(33, 40, dtype=torch.bfloat16)
    words = tiled(rows)
    assert words.shape == (2, 2, 2, 16, 16)
    assert words.contiguous().view(torch.bfloat16).sum() == 33 * 40
    assert filled(torch.ones(33)).tolist() == [1.0] * 33 + [0.0] * 31


@pytest.mark.parametrize(("itemsize", "gated"), [(1, True), (2, True), (2, False)])
def test_a_model_fills_the_packers_array(itemsize: int, gated: bool) -> None:
    model = small_llama(num_layers=2, vocab_size=500, gated_mlp=gated)
    packer = Packer(tiled_bytes(model, itemsize))
    shapes = [(320, 192), (192, 192), (384 * (1 + gated), 192), (192, 384)] * 2 + [(500, 192)]
    pack = packer.pack_int8 if itemsize == 1 else packer.pack
    packed = [pack(torch.randn(shape), None)["weight"] for shape in shapes]
    assert all(words.is_contiguous() for words in packed)
    assert sum(words.nbytes for words in packed) == tiled_bytes(model, itemsize)
