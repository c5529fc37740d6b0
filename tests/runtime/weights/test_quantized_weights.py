"""Narrowed tensors as files have them: what does not fit together is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jitney.runtime.errors import ModelError
from jitney.runtime.weights.mapped_tensors import MappedTensors
from jitney.runtime.weights.quantized_weights import QuantizedWeights, unpacked


def opened(path: Path, **tensors: torch.Tensor) -> QuantizedWeights:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path / "t.safetensors")
    return QuantizedWeights(MappedTensors(path / "t.safetensors"))


def test_int8_comes_back_and_as_it_is(tmp_path: Path) -> None:
    values = torch.tensor([[-127, 5, 0], [1, 2, 127]], dtype=torch.int8)
    weights = opened(tmp_path, a__weight=values, a__weight_scale=torch.tensor([[0.5], [2.0]]))
    assert list(weights.names()) == ["a.weight"] and weights.shape("a.weight") == (2, 3)
    assert weights.get("a.weight").equal(torch.tensor([[-63.5, 2.5, 0.0], [2.0, 4.0, 254.0]]))
    rounded = weights.rounded("a.weight")
    assert rounded is not None and rounded[0].equal(values) and rounded[1].equal(torch.tensor([0.5, 2.0]))


def test_int4_unpacks_every_value() -> None:
    words = torch.tensor([[0x76543210, -0x01234568]], dtype=torch.int32)
    assert unpacked(words).tolist() == [[-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_float_is_not_rounded(tmp_path: Path) -> None:
    weights = opened(tmp_path, a__weight=torch.ones(2, 2))
    assert weights.rounded("a.weight") is None
    with pytest.raises(ModelError, match="b.weight is missing"):
        weights.get("b.weight")


@pytest.mark.parametrize(
    "tensors, reason",
    [
        ({"a__weight": torch.ones(2, 3, dtype=torch.int8)}, "expected a.weight_scale beside it"),
        (
            {"a__weight": torch.ones(2, 3, dtype=torch.int8), "a__weight_scale": torch.ones(3, 1)},
            "a.weight_scale: expected scales for a matrix of",
        ),
        (
            {"a__weight": torch.ones(2, 4, dtype=torch.int8), "a__weight_scale": torch.ones(2, 2)},
            "a.weight_scale",
        ),
        (
            {"a__weight_packed": torch.ones(2, 1, dtype=torch.int32), "a__weight_scale": torch.ones(2, 3)},
            "a.weight_scale",
        ),
        (
            {"a__weight": torch.ones(2, 3, dtype=torch.int32), "a__weight_scale": torch.ones(2, 1)},
            "expected a matrix of I8 or F8_E4M3, found I32",
        ),
        (
            {"a__weight": torch.ones(2, dtype=torch.int8), "a__weight_scale": torch.ones(2, 1)},
            "expected a matrix",
        ),
    ],
)
def test_what_does_not_fit(tensors: dict[str, torch.Tensor], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=reason):
        opened(tmp_path, **tensors)
