"""Linear layers, fused and not, by every kernel, against their naive twins."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from triton import OutOfResources

from jitney.runtime.kernels.activation import activation_reference
from jitney.runtime.kernels.choice import Choice, Task
from jitney.runtime.kernels.linear import Extras, Linears
from jitney.runtime.kernels.narrow import Rows, narrowed, narrowed_weight
from jitney.runtime.kernels.norm import Norm, norm_reference
from jitney.runtime.kernels.weight import Weight, product_reference
from jitney.runtime.kernels.workspace import Widths
from jitney.runtime.model.linear_int8 import rounded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
K, N = 192, 48

GEMV = Choice("gemv", block_n=8, block_k=64, warps=2, fuses_norm=True)
NARROWING = Choice("narrowing", block_n=4, block_k=256, warps=2)
RESIDENT = Choice("resident", block_n=16, block_k=128, splits=2, warps=2, rows=16, fuses_norm=True)
NORMED = Choice("resident", block_n=32, block_k=128, splits=4, rows=16)
TILED = Choice("product", block_n=32, block_k=32, stages=2, rows=16, prefetch=128)
SPLIT = Choice("product", block_n=32, block_k=32, splits=2, stages=2, rows=16)
LIBRARY = Choice("library")
WIDE_GATED = Choice("wide_gated", block_n=32, block_k=128, rows=32, stages=2)
WIDTHS = Widths(normed=K, activated=N, ups=K, narrow=K)


class Fixed(Linears):
    """Always the same choice."""

    def __init__(self, choice: Choice, dtype: torch.dtype) -> None:
        super().__init__(DEVICE, dtype, max_tokens=40, widths=WIDTHS)
        self._fixed = choice

    def choice(self, task: Task) -> Choice:
        return self._fixed


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def close(got: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    tolerance = tolerance or TOLERANCE[got.dtype]
    return bool((got - expected).float().norm() <= tolerance * expected.float().norm())


def wide(rows: Rows) -> Tensor:
    return rows.values if rows.scale is None else rows.values.float() * rows.scale[:, None]


def activated(ups: Tensor, name: str, dtype: torch.dtype, *, gated: bool, narrow: bool) -> Tensor:
    """As they go into the next product, or, where that narrows its row itself, to it."""
    if not narrow:
        return activation_reference(ups, name, gated=gated).to(dtype)
    return wide(Rows(*narrowed(activation_reference(ups.to(dtype), name, gated=gated)))).to(dtype)


def weight(kind: str, outputs: int, dtype: torch.dtype, *, bias: bool = False) -> Weight:
    values = drawn(outputs, K, dtype=dtype, seed=1) * 0.1
    offset = drawn(outputs, dtype=dtype, seed=2) if bias else None
    if kind == "plain":
        return Weight(values, None, offset)
    return Weight(*(rounded if kind == "int8" else narrowed_weight)(values), offset)


def blank(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def rms(dtype: torch.dtype) -> Norm:
    return Norm(drawn(K, dtype=dtype, seed=3), None, 1e-6, True)


KINDS = [
    ("plain", torch.bfloat16),
    ("plain", torch.float32),
    ("fp8", torch.bfloat16),
    ("fp8", torch.float32),
    ("int8", torch.bfloat16),
    ("int8", torch.float32),
]
CASES = [
    (kind, dtype, choice, rows)
    for (kind, dtype), choice, rows in itertools.product(
        KINDS, (GEMV, NARROWING, RESIDENT, NORMED, TILED, SPLIT, LIBRARY), (1, 3, 21)
    )
    if (rows == 1) == (choice in (GEMV, NARROWING))
    and not (choice is NARROWING and kind != "fp8")
    and not (choice.kind == "resident" and (rows > 16 or kind != "plain"))
    and not (choice is LIBRARY and (kind == "int8" or (kind, dtype) == ("fp8", torch.float32)))
]


@pytest.mark.parametrize("kind, dtype, choice, rows", CASES)
def test_every_form_is_its_twin(kind: str, dtype: torch.dtype, choice: Choice, rows: int) -> None:
    """In eight bits a norm or activation that is rounded otherwise may be narrowed to the next value."""
    linears, x, norm = Fixed(choice, dtype), drawn(rows, K, dtype=dtype), rms(dtype)
    is_narrow = kind == "fp8" and choice is not NARROWING
    w, tolerance = weight(kind, N, dtype, bias=rows != 3), 2e-2 if kind == "fp8" else None
    out = blank(rows, N, dtype=dtype)
    linears.linear(Rows(x), w, out)
    assert close(out, product_reference(x, w).to(dtype))
    linears.norm_linear(x, norm, w, out)
    assert close(out, product_reference(norm_reference(x, norm), w).to(dtype), tolerance)
    residual = drawn(rows, N, dtype=dtype, seed=4)
    expected = (residual.float() + product_reference(x, w)).to(dtype)
    linears.linear_add(Rows(x), w, residual)
    assert close(residual, expected)
    ups = product_reference(norm_reference(x, norm), w)
    found = linears.norm_up(x, norm, w, "gelu", gated=False)
    assert (found.scale is not None) == is_narrow
    expected = activated(ups, "gelu", dtype, gated=False, narrow=is_narrow)
    assert close(wide(found).to(dtype), expected, tolerance)
    w = weight(kind, 2 * N, dtype, bias=rows != 3)
    ups = product_reference(norm_reference(x, norm), w)
    expected = activated(ups, "silu", dtype, gated=True, narrow=is_narrow)
    assert close(wide(linears.norm_up(x, norm, w, "silu", gated=True)).to(dtype), expected, tolerance)


@pytest.mark.parametrize("rows, outputs", [(70, 48), (32, 32), (5, 88)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_wide_gated_product_is_its_twin(rows: int, outputs: int, bias: bool) -> None:
    """Tiles that are whole and others, in two rounds of two programs."""
    dtype = torch.bfloat16
    linears = Linears(DEVICE, dtype, max_tokens=70, widths=Widths(K, outputs, K, K))
    w, x = weight("plain", 2 * outputs, dtype, bias=bias), drawn(rows, K, dtype=dtype)
    out = blank(rows, outputs, dtype=dtype)
    linears._by_wide_gated(WIDE_GATED, x, w, out, Extras(activation="silu", gated=True))
    assert close(out, activation_reference(product_reference(x, w), "silu", gated=True).to(dtype))


@pytest.mark.parametrize("choice", [GEMV, NARROWING, RESIDENT, SPLIT, LIBRARY])
def test_rows_are_chosen_by_index(choice: Choice) -> None:
    dtype = torch.bfloat16
    linears, x, norm, w = (
        Fixed(choice, dtype),
        drawn(9, K, dtype=dtype),
        rms(dtype),
        weight("fp8" if choice is NARROWING else "plain", N, dtype),
    )
    rows = torch.tensor([7] if choice in (GEMV, NARROWING) else [7, 0, 7], dtype=torch.int32, device=DEVICE)
    out = blank(len(rows), N, dtype=dtype)
    linears.norm_linear(x, norm, w, out, rows)
    assert close(out, product_reference(norm_reference(x, norm, rows), w).to(dtype))


@pytest.mark.parametrize("choice", [RESIDENT, SPLIT, TILED])
def test_a_row_of_nan_stays_its_own(choice: Choice) -> None:
    dtype = torch.bfloat16
    linears, x, w = Fixed(choice, dtype), drawn(5, K, dtype=dtype), weight("plain", N, dtype)
    x[2] = torch.nan
    out = blank(5, N, dtype=dtype)
    linears.norm_linear(x, rms(dtype), w, out)
    assert out.isfinite().all(dim=1).tolist() == [True, True, False, True, True]


def test_a_split_product_leaves_its_workspace_ready() -> None:
    dtype = torch.float32
    linears, x, w = Fixed(SPLIT, dtype), drawn(16, K, dtype=dtype), weight("plain", N, dtype)
    first, second = blank(16, N, dtype=dtype), blank(16, N, dtype=dtype)
    linears.linear(Rows(x), w, first)
    linears.linear(Rows(x), w, second)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "kind, dtype",
    [("plain", torch.bfloat16), ("plain", torch.float32), ("fp8", torch.bfloat16), ("int8", torch.bfloat16)],
)
def test_deterministic_rows_do_not_depend_on_their_number(kind: str, dtype: torch.dtype) -> None:
    linears = Linears(DEVICE, dtype, max_tokens=70, widths=WIDTHS, deterministic=True)
    x, norm, w = drawn(70, K, dtype=dtype), rms(dtype), weight(kind, N, dtype)
    whole = blank(70, N, dtype=dtype)
    linears.norm_linear(x, norm, w, whole)
    for first, last in ((0, 1), (5, 22), (60, 70)):
        part = blank(last - first, N, dtype=dtype)
        linears.norm_linear(x[first:last], norm, w, part)
        assert torch.equal(part, whole[first:last])


@pytest.mark.parametrize("deterministic", [True, False])
def test_in_eight_bits_a_row_gives_the_same_for_every_number_of_rows(deterministic: bool) -> None:
    """One row, a few, the most that are few, and more: other kernels, the same rows narrowed alike."""
    dtype, counts = torch.bfloat16, (1, 3, 64, 65, 200)
    linears = Linears(DEVICE, dtype, max_tokens=200, widths=WIDTHS, deterministic=deterministic)
    kinds = {linears.choice(Task(N, K, count, 8)).kind for count in counts}
    assert kinds == ({"product"} if deterministic else {"narrowing", "product", "library"})
    x, norm, up, down = (
        drawn(200, K, dtype=dtype),
        rms(dtype),
        weight("fp8", 2 * N, dtype),
        drawn(K, N, dtype=dtype),
    )
    narrow = Weight(*narrowed_weight(down))
    results = []
    for count in counts:
        residual = x[:count].clone()
        linears.linear_add(linears.norm_up(x[:count], norm, up, "silu", gated=True), narrow, residual)
        results.append(residual)
    for found in results[:-1]:
        expected = results[-1][: len(found)]
        assert torch.equal(found, expected) if deterministic else close(found, expected, 1e-2)


def test_in_eight_bits_one_row_is_narrowed_by_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the norm, nor the activation, nor a launch that does only that."""
    dtype = torch.bfloat16
    linears, x, norm = (
        Linears(DEVICE, dtype, max_tokens=1, widths=WIDTHS),
        drawn(1, K, dtype=dtype),
        rms(dtype),
    )
    up, down = weight("fp8", 2 * N, dtype), Weight(*narrowed_weight(drawn(K, N, dtype=dtype)))
    ups = product_reference(norm_reference(x, norm), up)
    expected = x + product_reference(activated(ups, "silu", dtype, gated=True, narrow=False), down)
    monkeypatch.setattr(linears, "_prepared", None)
    linears.linear_add(linears.norm_up(x, norm, up, "silu", gated=True), down, x)
    assert close(x.float(), expected, 1e-2)


def test_in_eight_bits_a_layer_norm_narrows_the_row_before() -> None:
    dtype = torch.bfloat16
    linears, x, w = (
        Linears(DEVICE, dtype, max_tokens=1, widths=WIDTHS),
        drawn(1, K, dtype=dtype),
        weight("fp8", N, dtype),
    )
    norm = Norm(drawn(K, dtype=dtype, seed=3), drawn(K, dtype=dtype, seed=4), 1e-5, False)
    assert linears.choice(Task(N, K, 1, 8)).kind == "narrowing"
    out = blank(1, N, dtype=dtype)
    linears.norm_linear(x, norm, w, out)
    assert close(out, product_reference(norm_reference(x, norm), w).to(dtype), 2e-2)


def test_in_eight_bits_what_torch_has_no_product_for_is_multiplied_by_the_fixed_one() -> None:
    linears = Linears(DEVICE, torch.bfloat16, max_tokens=200, widths=WIDTHS)
    x, w = drawn(70, K, dtype=torch.bfloat16), weight("fp8", 41, torch.bfloat16)
    out = blank(70, 41, dtype=torch.bfloat16)
    linears.linear(Rows(x), w, out)
    assert close(out, product_reference(x, w).bfloat16())


def test_whole_numbers_are_widened_for_any_number_of_rows_and_torch_multiplies_none() -> None:
    dtype, counts = torch.bfloat16, (1, 3, 64, 65, 200)
    linears = Linears(DEVICE, dtype, max_tokens=200, widths=WIDTHS)
    tasks = [Task(N, K, count, 16, normed=True).stored_as("int8") for count in counts]
    assert [linears.choice(task).kind for task in tasks] == ["gemv"] + 4 * ["product"]
    x, norm, w = drawn(200, K, dtype=dtype), rms(dtype), weight("int8", N, dtype, bias=True)
    for count in counts:
        out = blank(count, N, dtype=dtype)
        linears.norm_linear(x[:count], norm, w, out)
        assert close(out, product_reference(norm_reference(x[:count], norm), w).to(dtype))


def test_layer_norm_goes_before_the_product() -> None:
    dtype = torch.float32
    linears = Linears(DEVICE, dtype, max_tokens=3, widths=WIDTHS)
    norm = Norm(drawn(K, dtype=dtype, seed=3), drawn(K, dtype=dtype, seed=4), 1e-5, False)
    x, w, out = drawn(3, K, dtype=dtype), weight("plain", N, dtype, bias=True), blank(3, N, dtype=dtype)
    linears.norm_linear(x, norm, w, out)
    assert close(out, product_reference(norm_reference(x, norm), w))


def test_no_rows_are_no_work() -> None:
    linears = Linears(DEVICE, torch.bfloat16, max_tokens=1, widths=WIDTHS)
    linears.linear(
        Rows(torch.empty(0, K, dtype=torch.bfloat16, device=DEVICE)),
        weight("plain", N, torch.bfloat16),
        torch.empty(0, N, dtype=torch.bfloat16, device=DEVICE),
    )


def test_a_card_that_cannot_hold_a_kernel_uses_the_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dtype = torch.bfloat16
    linears = Linears(DEVICE, dtype, max_tokens=3, widths=WIDTHS)
    refused: list[Choice] = []

    def refuse(choice: Choice, *rest: object) -> None:
        refused.append(choice)
        raise OutOfResources(300_000, 101_376, "shared memory")

    monkeypatch.setattr(linears, "_by_product", refuse)
    monkeypatch.setattr(linears, "_by_resident", refuse)
    x, w, norm = drawn(3, K, dtype=dtype), weight("plain", 2 * N, dtype), rms(dtype)
    for _ in range(2):
        out = wide(linears.norm_up(x, norm, w, "silu", gated=True))
        ups = product_reference(norm_reference(x, norm), w)
        assert close(out, activation_reference(ups, "silu", gated=True).to(dtype))
    assert len(refused) == len(caplog.records) == 1
