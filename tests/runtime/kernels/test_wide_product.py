"""Wide products: which they are, how their kernel is found, and that it computes torch's product."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from jitney.runtime.kernels.linear import Linears
from jitney.runtime.kernels.narrow import Rows
from jitney.runtime.kernels.weight import Weight
from jitney.runtime.kernels.wide_product import WideProducts, is_wide, wide_products
from jitney.runtime.kernels.workspace import Widths

is_hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not is_hopper, reason="wants a card of compute capability 9.0")
H100 = 132
WANTED = {1: 201, 8: 5, 5: 2}
OTHER = {1: 24, 8: 5, 5: 2}


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


class FakeLibrary:
    """Of cuBLASLt's functions those that are called. `proposals`: attributes of each kernel by number; a kernel names
    itself by the first word of its algorithm. `statuses`: what a function says, by its name."""

    def __init__(self, *proposals: dict[int, int], **statuses: int) -> None:
        self.proposals, self.statuses = proposals, statuses
        self.launched: list[int] = []
        self.num_held = 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cublasLt"):
            raise AttributeError(name)
        return lambda *_: self._said(name)

    def _said(self, name: str) -> int:
        status = self.statuses.get(name.removeprefix("cublasLt"), 0)
        self.num_held += (name.endswith("Create") - name.endswith("Destroy")) * (status == 0)
        return status

    def cublasLtMatmulAlgoGetHeuristic(self, *arguments: Any) -> int:
        found, count = arguments[-2], arguments[-1]._obj
        for number, _ in enumerate(self.proposals):
            found[number].algorithm[0] = number
        count.value = len(self.proposals)
        return self._said("cublasLtMatmulAlgoGetHeuristic")

    def cublasLtMatmulAlgoConfigGetAttribute(self, kernel: Any, number: Any, value: Any, *_: Any) -> int:
        value._obj.value = self.proposals[kernel._obj.algorithm[0]][number.value]
        return self._said("cublasLtMatmulAlgoConfigGetAttribute")

    def cublasLtMatmul(self, *arguments: Any) -> int:
        self.launched.append(arguments[12]._obj.algorithm[0])
        return self._said("cublasLtMatmul")


@pytest.fixture
def operands(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor]:
    """Wide on one processor."""
    stream = type("Stream", (), {"cuda_stream": 0})
    monkeypatch.setattr(torch.cuda, "current_blas_handle", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr("jitney.runtime.kernels.wide_product.ALIGNMENT", 64)
    x, weight, out = (
        torch.zeros(size, dtype=torch.bfloat16) for size in ((1024, 16), (256, 16), (1024, 256))
    )
    return x, weight, out


def wide(library: FakeLibrary) -> WideProducts:
    return WideProducts(library, torch.empty(16), 1)


def test_the_kernel_is_looked_for_among_the_proposals(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    library = FakeLibrary(OTHER, WANTED, WANTED)
    products = wide(library)
    assert products.computes(*operands) and products.computes(*operands)
    assert library.launched == [1, 1]


@pytest.mark.parametrize("proposals", [(), (OTHER,), ({**WANTED, 8: 3},), ({**WANTED, 5: 0}, OTHER)])
def test_where_it_is_not_proposed_nothing_is_launched(
    operands: tuple[Tensor, Tensor, Tensor], proposals: tuple[dict[int, int], ...]
) -> None:
    library = FakeLibrary(*proposals)
    assert not wide(library).computes(*operands)
    assert not library.launched


@pytest.mark.parametrize("name", ["MatmulAlgoGetHeuristic", "MatmulAlgoConfigGetAttribute"])
def test_a_library_that_does_not_say_leaves_it_to_torch(
    operands: tuple[Tensor, Tensor, Tensor], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    library = FakeLibrary(WANTED, **{name: 15})
    products = wide(library)
    assert not products.computes(*operands) and not products.computes(*operands)
    assert not library.launched and len(caplog.records) == 1 and "1024 x 256 x 16" in caplog.text


@pytest.mark.parametrize("status", [7, 15])
def test_a_refused_launch_is_torchs_from_then_on(
    operands: tuple[Tensor, Tensor, Tensor], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    library = FakeLibrary(WANTED, Matmul=status)
    products = wide(library)
    assert not products.computes(*operands) and not products.computes(*operands)
    assert len(library.launched) == len(caplog.records) == 1


def test_a_launch_that_fails_is_raised(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(RuntimeError, match="cublasLtMatmul: status 13"):
        wide(FakeLibrary(WANTED, Matmul=13)).computes(*operands)


def test_other_rows_and_types_are_not_for_it(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    library = FakeLibrary(WANTED)
    x, weight, out = operands
    products = wide(library)
    assert not products.computes(x[:1023], weight, out[:1023])
    assert not products.computes(x, weight.float(), out)
    assert not products.computes(x, weight.t().contiguous().t(), out)
    assert not products.computes(torch.zeros(1024 * 16 + 1, dtype=x.dtype)[1:].view(1024, 16), weight, out)
    assert not library.launched and not library.num_held


def test_what_describes_a_product_goes_with_it(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    library = FakeLibrary(OTHER, WANTED)
    products = wide(library)
    products.computes(*operands)
    assert library.num_held == 4
    del products
    gc.collect()
    assert library.num_held == 0


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
    noting: Any = Noting(takes=takes)
    linears.wide = noting
    x, weight = torch.randn(80, 64).bfloat16(), torch.randn(32, 64).bfloat16()
    out = torch.randn(80, 32).bfloat16()
    before = out.clone()
    if add:
        linears.linear_add(Rows(x), Weight(weight), out)
    else:
        linears.linear(Rows(x), Weight(weight), out)
    assert noting.asked == (0 if add else 1)
    torch.testing.assert_close(out, torch.addmm(before, x, weight.t(), beta=int(add)), rtol=0.02, atol=0.1)


def test_without_the_library_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert wide_products(torch.empty(16), H100) is None
    assert "libcublasLt.so.13" in caplog.text


@on_hopper
@pytest.mark.parametrize(
    "rows, outputs, inputs",
    [(1024, 28672, 4096), (2112, 16384, 2048), (8192, 3072, 2048), (1500, 28672, 4096), (1500, 16384, 1024)],
)
def test_it_computes_torchs_product(rows: int, outputs: int, inputs: int) -> None:
    """Where the library proposes its kernel, which it does for most multiples of 128 rows; else nothing is written."""
    products = wide_products(torch.empty(4 << 20, device="cuda"), H100)
    assert products is not None
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02
    out = torch.full((rows, outputs), torch.nan, device="cuda", dtype=torch.bfloat16)
    if products.computes(x, weight, out):
        torch.testing.assert_close(out, x @ weight.t(), rtol=0.02, atol=0.02)
    else:
        assert rows % 128 and out.isnan().all()


@on_hopper
def test_in_a_graph_between_products_that_share_its_workspace() -> None:
    linears = Linears(
        torch.device("cuda"), torch.bfloat16, max_tokens=1024, widths=Widths(normed=1024, ups=16384)
    )
    linears.wide = wide_products(linears.scratch, H100)
    x = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16)
    wide_weight = torch.randn(16384, 1024, device="cuda", dtype=torch.bfloat16) * 0.03
    split_weight = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16) * 0.03
    out = torch.empty(1024, 16384, device="cuda", dtype=torch.bfloat16)
    few = torch.empty(32, 1024, device="cuda", dtype=torch.bfloat16)

    def launch() -> None:
        linears.linear(Rows(x[:32]), Weight(split_weight), few)
        linears.linear(Rows(x), Weight(wide_weight), out)
        linears.linear(Rows(x[:32]), Weight(split_weight), few)

    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    out.zero_()
    few.zero_()
    graph.replay()
    torch.testing.assert_close(out, x @ wide_weight.t(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(few, x[:32] @ split_weight.t(), rtol=0.02, atol=0.02)
