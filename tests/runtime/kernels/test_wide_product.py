"""Wide products: which they are, and that the kernel that is asked for computes torch's product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jitney.runtime.kernels.linear import Linears
from jitney.runtime.kernels.narrow import Rows
from jitney.runtime.kernels.weight import Weight
from jitney.runtime.kernels.wide_product import WideProducts, is_wide, wide_products
from jitney.runtime.kernels.workspace import Widths

on_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a card")
H100 = 132


@pytest.mark.parametrize(
    "rows, outputs, wanted",
    [
        (1024, 28672, True),
        (1023, 28672, False),
        (256, 128256, False),
        (8192, 3072, True),
        (1024, 6144, False),
        (2048, 6144, True),
        (1024, 16384, True),
        (4096, 1024, False),
    ],
)
def test_wide_is_what_keeps_the_card_busy(rows: int, outputs: int, wanted: bool) -> None:
    assert is_wide(rows, outputs, H100) == wanted


class Noting:
    """In place of `WideProducts`: takes or leaves all."""

    def __init__(self, *, takes: bool) -> None:
        self.takes, self.asked = takes, 0

    def computes(self, x: Tensor, weight: Tensor, out: Tensor) -> bool:
        self.asked += 1
        if self.takes:
            out.copy_(x @ weight.t())
        return self.takes


@pytest.mark.parametrize("takes", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_it_is_asked_for_what_the_library_would_compute(takes: bool, add: bool) -> None:
    torch.manual_seed(0)
    linears = Linears(torch.device("cpu"), torch.bfloat16, max_tokens=96, widths=Widths(normed=64))
    wide: Any = Noting(takes=takes)
    linears.wide = wide
    x, weight = torch.randn(80, 64).bfloat16(), torch.randn(32, 64).bfloat16()
    out = torch.randn(80, 32).bfloat16()
    before = out.clone()
    if add:
        linears.linear_add(Rows(x), Weight(weight), out)
    else:
        linears.linear(Rows(x), Weight(weight), out)
    assert wide.asked == (0 if add else 1)
    torch.testing.assert_close(out, torch.addmm(before, x, weight.t(), beta=int(add)), rtol=0.02, atol=0.1)


def test_without_the_library_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "1.0")
    assert wide_products(torch.empty(16), H100) is None
    assert "libcublasLt.so.1" in caplog.text


@on_card
@pytest.mark.parametrize(
    "rows, outputs, inputs",
    [(1024, 28672, 4096), (2112, 16384, 2048), (8192, 3072, 2048), (1500, 16384, 1024)],
)
def test_it_computes_torchs_product(rows: int, outputs: int, inputs: int) -> None:
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    wide = WideProducts(torch.empty(4 << 20, device="cuda"), processors)
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02
    out = torch.full((rows, outputs), torch.nan, device="cuda", dtype=torch.bfloat16)
    if wide.computes(x, weight, out):
        torch.testing.assert_close(out, x @ weight.t(), rtol=0.02, atol=0.02)
    else:
        assert out.isnan().all()
    assert not wide.computes(x[:512], weight, out[:512])


@on_card
def test_an_h100_has_the_kernel() -> None:
    if torch.cuda.get_device_name() != "NVIDIA H100 80GB HBM3":
        pytest.skip("another card")
    wide = WideProducts(torch.empty(4 << 20, device="cuda"), H100)
    x = torch.randn(1024, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(28672, 4096, device="cuda", dtype=torch.bfloat16)
    assert wide.computes(x, weight, torch.empty(1024, 28672, device="cuda", dtype=torch.bfloat16))
