"""8-bit weights: what is lost in quantising, and that nothing is lost after it."""

from __future__ import annotations

import torch

from jitney.runtime.kernels.weight import quantize_fp8, quantize_int8, widen

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def drawn(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-6, 4, rows).unsqueeze(1)
    return (torch.randn(rows, columns, generator=generator) * spread).to(DEVICE)


def test_e4m3_scales_are_powers_of_two_and_fill_the_range() -> None:
    weight = drawn(20, 64)
    values, scale = quantize_fp8(weight)
    assert (torch.frexp(scale).mantissa == 0.5).all()
    largest = values.float().abs().amax(dim=1)
    assert (largest > 216).all() and (largest <= 448).all()
    assert ((values.float() * scale.unsqueeze(1) - weight).norm() / weight.norm()).item() < 0.04


def test_an_e4m3_weight_fits_bf16_exactly() -> None:
    values, scale = quantize_fp8(drawn(20, 64))
    out = torch.empty(20, 64, dtype=torch.bfloat16, device=DEVICE)
    widen(values, scale, out)
    assert torch.equal(out.float(), values.float() * scale.unsqueeze(1))


def test_int8_is_within_half_a_step() -> None:
    weight = drawn(20, 64)
    values, scale = quantize_int8(weight)
    assert ((values.float() * scale.unsqueeze(1) - weight).abs() <= 0.501 * scale.unsqueeze(1)).all()


def test_a_row_of_zeros_stays_one() -> None:
    for quantize in (quantize_fp8, quantize_int8):
        values, scale = quantize(torch.zeros(2, 16, device=DEVICE))
        assert scale.isfinite().all() and not values.float().any()
