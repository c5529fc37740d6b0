"""cuBLASLt on a card: every kernel that it proposes computes torch's product."""

from __future__ import annotations

import pytest
import torch

from jitney.runtime.kernels.cublaslt import MOST, CublasLt
from jitney.runtime.kernels.library import Library, key
from jitney.runtime.kernels.replay import replay_times

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a card")


def opened() -> CublasLt:
    return CublasLt(torch.empty(4 << 20, device="cuda"))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("rows, outputs, inputs", [(96, 1024, 2048), (128, 4096, 14336), (500, 3072, 1024)])
def test_every_proposal_computes_torchs_product(rows: int, outputs: int, inputs: int, add: bool) -> None:
    library = opened()
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02
    before = torch.randn(rows, outputs, device="cuda", dtype=torch.bfloat16)
    wanted = x.float() @ weight.float().t() + before.float() * add
    count = library.num_proposals(rows, outputs, inputs)
    assert 1 <= count <= MOST
    for rank in range(count):
        out = before.clone()
        library.multiply(x, weight, out, rank, add=add)
        torch.testing.assert_close(out.float(), wanted, rtol=0.02, atol=0.02)
    with pytest.raises(IndexError):
        library.multiply(x, weight, before, count, add=add)


def test_timed_in_a_graph() -> None:
    library = Library(opened(), {}, replay_times)
    x = torch.randn(128, 1024, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    out = torch.empty(128, 1024, device="cuda", dtype=torch.bfloat16)
    with library.timing(weights):
        library.multiplied(x, weights[0], out, add=False)
    assert 0 <= library.ranks[key(x, weights[0], add=False)] < MOST
