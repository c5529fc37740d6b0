"""Which of a library's kernels computes: the fastest of those it proposes, known by the exact shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jitney.runtime.kernels.library import LEAST_GAIN, Library, key
from jitney.runtime.kernels.tuned import load, ranks_file, store

M, N, K = 96, 24, 16


class Proposals:
    """Three kernels in plain torch; notes which computed, and with which weights."""

    def __init__(self, num: int = 3) -> None:
        self.num = num
        self.used: list[tuple[int, Tensor]] = []

    def num_proposals(self, num_rows: int, num_outputs: int, num_inputs: int) -> int:
        return self.num

    def multiply(self, x: Tensor, weight: Tensor, out: Tensor, rank: int, *, add: bool) -> None:
        assert rank < self.num
        self.used.append((rank, weight))
        torch.addmm(out, x, weight.t(), beta=int(add), out=out)


def clock(*seconds: float) -> Callable[[Sequence[Callable[[], None]], int], list[float]]:
    """Launches each once, and says what it was told to."""

    def times(launches: Sequence[Callable[[], None]], _: int) -> list[float]:
        for launch in launches:
            launch()
        return list(seconds)

    return times


def operands() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(size, generator=generator) for size in ((M, K), (N, K), (M, N)))  # type: ignore[return-value]


def timed(proposals: Proposals, *seconds: float, add: bool = False) -> Library:
    library = Library(proposals, {}, clock(*seconds))
    x, weight, out = operands()
    with library.timing([weight]):
        library.multiplied(x, weight, out, add=add)
    return library


def test_the_fastest_is_used_from_then_on() -> None:
    proposals = Proposals()
    library = timed(proposals, 3.0, 2.0, 1.0)
    assert library.ranks == {"24x16-m96": 2}
    assert [rank for rank, _ in proposals.used] == [0, 1, 2, 2]
    x, weight, out = operands()
    assert library.multiplied(x, weight, out, add=False)
    torch.testing.assert_close(out, x @ weight.t())
    assert proposals.used[-1][0] == 2 and len(proposals.used) == 5


@pytest.mark.parametrize("gain, wins", [(0.0, False), (LEAST_GAIN / 2, False), (2 * LEAST_GAIN, True)])
def test_torchs_stays_unless_another_is_clearly_faster(gain: float, wins: bool) -> None:
    library = timed(Proposals(), 1.0, 1.0 - gain, 2.0)
    assert library.ranks == {"24x16-m96": int(wins)}
    x, weight, out = operands()
    before = out.clone()
    assert library.multiplied(x, weight, out, add=False) == wins
    assert torch.equal(out, before) != wins


def test_what_is_added_to_has_a_kernel_of_its_own() -> None:
    library = timed(Proposals(), 3.0, 1.0, 2.0, add=True)
    assert library.ranks == {"24x16-m96-add": 1}
    x, weight, out = operands()
    before = out.clone()
    assert not library.multiplied(x, weight, out, add=False)
    assert library.multiplied(x, weight, out, add=True)
    torch.testing.assert_close(out, before + x @ weight.t())


def test_nothing_is_timed_but_where_asked_and_once() -> None:
    proposals = Proposals()
    library = Library(proposals, {}, clock(2.0, 1.0, 3.0))
    x, weight, out = operands()
    assert not library.multiplied(x, weight, out, add=False)
    assert not library.ranks and not proposals.used
    with library.timing([weight]):
        assert library.multiplied(x, weight, out, add=False)
        count = len(proposals.used)
        assert library.multiplied(x, weight, out, add=False)
    assert len(proposals.used) == count + 1


def test_weights_of_one_shape_are_read_in_turns() -> None:
    proposals = Proposals()
    library = Library(proposals, {}, clock(2.0, 1.0, 3.0))
    x, weight, out = operands()
    others = [weight.clone(), torch.randn(K, N), weight.clone()]
    with library.timing(others):
        library.multiplied(x, weight, out, add=False)
    read = [weight for rank, weight in proposals.used if rank == 0]
    assert read[0] is others[0] and read[1] is others[2] and len(read) == 2


def test_ranks_of_another_version_do_no_harm() -> None:
    library = Library(Proposals(num=2), {"24x16-m96": 5}, clock())
    x, weight, out = operands()
    assert not library.multiplied(x, weight, out, add=False)


def test_without_proposals_torch_computes() -> None:
    library = timed(Proposals(num=0))
    assert library.ranks == {"24x16-m96": 0}


def test_a_clock_that_fails_leaves_torchs(caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: object) -> list[float]:
        raise RuntimeError("status 15")

    library = Library(Proposals(), {}, fails)
    x, weight, out = operands()
    with library.timing([weight]):
        assert not library.multiplied(x, weight, out, add=False)
    assert library.ranks == {"24x16-m96": 0} and "status 15" in caplog.text


def test_ranks_come_back_as_they_were_kept(tmp_path: Path) -> None:
    path = ranks_file(tmp_path, "NVIDIA H100 80GB HBM3", "2.11.0+cu130")
    assert path.name == "nvidia-h100-80gb-hbm3-library-of-torch-2.11.0+cu130.json"
    x, weight, _ = operands()
    store(path, {key(x, weight, add=True): 3})
    assert load(path, int) == {"24x16-m96-add": 3}
