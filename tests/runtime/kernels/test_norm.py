"""Norms, activations and the embedding gather against their naive twins."""

from __future__ import annotations

import pytest
import torch

from jitney.runtime.kernels.activation import ACTIVATIONS, activation, activation_reference
from jitney.runtime.kernels.embedding import embedding, embedding_reference
from jitney.runtime.kernels.narrow import Rows
from jitney.runtime.kernels.norm import Norm, norm, norm_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((got - expected).float().norm() <= TOLERANCE[got.dtype] * expected.float().norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("width", [64, 96])
def test_a_norm_is_its_twin(dtype: torch.dtype, rms: bool, width: int) -> None:
    x = drawn(5, width, dtype=dtype)
    bias = None if rms else drawn(width, dtype=dtype, seed=2)
    parameters = Norm(drawn(width, dtype=dtype, seed=1), bias, 1e-5, rms)
    out = torch.full_like(x, torch.nan)
    norm(x, parameters, Rows(out))
    assert close(out, norm_reference(x, parameters))
    rows = torch.tensor([3, 0], dtype=torch.int32, device=DEVICE)
    norm(x, parameters, Rows(out[:2]), rows)
    assert close(out[:2], norm_reference(x, parameters, rows))


def test_a_row_of_nan_stays_its_own() -> None:
    x = drawn(3, 64, dtype=torch.bfloat16)
    x[1] = torch.nan
    out = torch.empty_like(x)
    norm(x, Norm(drawn(64, dtype=torch.bfloat16, seed=1), None, 1e-6, True), Rows(out))
    assert out.isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_an_activation_is_its_twin(dtype: torch.dtype, name: str, gated: bool) -> None:
    x = drawn(4, 192, dtype=dtype)
    out = torch.empty(4, 96 if gated else 192, dtype=dtype, device=DEVICE)
    activation(x, name, Rows(out), gated=gated)
    assert close(out, activation_reference(x, name, gated=gated))


def test_the_embedding_is_a_gather() -> None:
    table, learned = drawn(9, 40, dtype=torch.bfloat16), drawn(6, 40, dtype=torch.bfloat16, seed=1)
    tokens = torch.tensor([8, 0, 8, 3], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([0, 5, 1, 2], dtype=torch.int32, device=DEVICE)
    out = torch.empty(4, 40, dtype=torch.bfloat16, device=DEVICE)
    embedding(tokens, table, out)
    assert torch.equal(out, embedding_reference(tokens, table))
    embedding(tokens, table, out, positions, learned)
    assert close(out, embedding_reference(tokens, table, positions, learned))
