"""Rows in eight bits: what is lost in narrowing, that a row is narrowed by itself, and that all who do it agree."""

from __future__ import annotations

import pytest
import torch

from jitney.runtime.kernels.activation import activation, activation_reference
from jitney.runtime.kernels.narrow import Rows, narrowed, narrowed_weight
from jitney.runtime.kernels.norm import Norm, norm, norm_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.bfloat16, torch.float32]


def drawn(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """From row to row of another magnitude."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-6, 4, rows).unsqueeze(1)
    return (torch.randn(rows, columns, generator=generator) * spread).to(dtype).to(DEVICE)


def blank(rows: int, columns: int) -> Rows:
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=DEVICE)
    return Rows(values, torch.full((rows,), torch.nan, device=DEVICE))


def same(rows: Rows, expected: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """But for what the last bit of an activation may change."""
    assert rows.scale is not None
    values, scale = expected
    apart = (rows.values.float() * rows.scale[:, None] - values.float() * scale[:, None]).norm(dim=1)
    size = (values.float() * scale[:, None]).norm(dim=1)
    return torch.allclose(rows.scale, scale, rtol=1e-2) and bool((apart <= 0.02 * size).all())


def narrowed_alone(rows: torch.Tensor) -> Rows:
    out = blank(*rows.shape)
    activation(rows, None, out, gated=False)
    return out


@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_kernel_narrows_as_its_twin_bit_for_bit(dtype: torch.dtype, width: int) -> None:
    x = drawn(20, width, dtype)
    found, (values, scale) = narrowed_alone(x), narrowed(x)
    assert found.scale is not None and torch.equal(found.scale, scale)
    assert torch.equal(found.values.view(torch.uint8), values.view(torch.uint8))


def test_the_largest_value_becomes_448_and_little_is_lost() -> None:
    x = drawn(20, 64)
    values, scale = narrowed(x)
    assert (values.float().abs().amax(dim=1) == 448).all()
    assert ((values.float() * scale.unsqueeze(1) - x).norm(dim=1) < 0.04 * x.norm(dim=1)).all()


def test_a_weights_scale_is_the_one_that_loses_least() -> None:
    weight = drawn(1500, 64)
    lost = [
        (values.float() * scale.unsqueeze(1) - weight).norm(dim=1)
        for values, scale in (narrowed(weight), narrowed_weight(weight))
    ]
    assert (lost[1] <= lost[0]).all() and lost[1].sum() < 0.95 * lost[0].sum()
    values, scale = narrowed_weight(torch.zeros(2, 16, device=DEVICE))
    assert scale.isfinite().all() and not values.float().any()


def test_a_row_is_narrowed_by_itself() -> None:
    x = drawn(70, 64, torch.bfloat16)
    whole = narrowed_alone(x)
    x[1:] *= -1e4
    x[3, 5] = torch.nan
    alone, beside = narrowed_alone(x[:1]), narrowed_alone(x)
    for rows in (alone, beside):
        assert rows.scale is not None and whole.scale is not None
        assert torch.equal(rows.values[0].float(), whole.values[0].float())
        assert rows.scale[0] == whole.scale[0]
    assert beside.values.float().isnan().nonzero().tolist() == [[3, 5]]


def test_a_row_of_zeros_stays_one() -> None:
    for values, scale in (narrowed(torch.zeros(2, 16, device=DEVICE)), narrowed_alone(drawn(1, 16) * 0)):
        assert scale is not None and scale.isfinite().all() and not values.float().any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rms", [True, False])
def test_a_norm_narrows_what_it_would_have_written(dtype: torch.dtype, rms: bool) -> None:
    x, gain = drawn(5, 96, dtype), drawn(1, 96, dtype)[0] * 1e6
    parameters = Norm(gain, None if rms else gain.flip(0), 1e-5, rms)
    plain, rows = torch.empty_like(x), blank(5, 96)
    norm(x, parameters, Rows(plain))
    norm(x, parameters, rows)
    assert same(rows, narrowed(plain)) and same(rows, narrowed(norm_reference(x, parameters)))
    chosen = torch.tensor([3, 0], dtype=torch.int32, device=DEVICE)
    picked = blank(2, 96)
    norm(x, parameters, picked, chosen)
    assert torch.equal(picked.values.float(), rows.values[chosen.long()].float())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("gated", [True, False])
def test_an_activation_narrows_what_it_would_have_written(dtype: torch.dtype, gated: bool) -> None:
    x = drawn(5, 192, dtype) * 1e-3
    width = 96 if gated else 192
    plain, rows = torch.empty(5, width, dtype=dtype, device=DEVICE), blank(5, width)
    activation(x, "silu", Rows(plain), gated=gated)
    activation(x, "silu", rows, gated=gated)
    assert same(rows, narrowed(plain)) and same(rows, narrowed(activation_reference(x, "silu", gated=gated)))
