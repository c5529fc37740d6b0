"""Which of the kernels that cuBLASLt proposes computes a product: the fastest by the clock.

Its ranking is a guess from shape and card, and the first is up to a sixth slower than the best (benchmarks). Which is
best hangs on the exact number of rows, so each size of a pass has its own. It is timed when that pass is first warmed,
before its graph is captured, and kept on disk; what is never warmed is torch's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from torch import Tensor

LEAST_GAIN = 0.02
"""Less than this is within what two measurements of one kernel differ by."""
PEER_BYTES = 200 << 20
"""Of weights that are read in turns, so that none is found in the card's cache."""
ROUNDS = 3

Times = Callable[[Sequence[Callable[[], None]], int], list[float]]
log = logging.getLogger(__name__)


class Proposing(Protocol):
    """What `CublasLt` does."""

    def num_proposals(self, num_rows: int, num_outputs: int, num_inputs: int) -> int: ...

    def multiply(self, x: Tensor, weight: Tensor, out: Tensor, rank: int, *, add: bool) -> None: ...


class Library:
    """`ranks` by `key`, those that are timed among them; `times` as `replay_times`. One thread's."""

    def __init__(self, proposing: Proposing, ranks: dict[str, int], times: Times) -> None:
        self.ranks = ranks
        self._proposing, self._times = proposing, times
        self._peers: Sequence[Tensor] = ()

    @contextmanager
    def timing(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Products of unknown shape are timed from here on, with the `weights` of that shape. They overwrite their x
        and out."""
        self._peers = weights
        try:
            yield
        finally:
            self._peers = ()

    def multiplied(self, x: Tensor, weight: Tensor, out: Tensor, *, add: bool) -> bool:
        """Whether a kernel is known that is faster than torch's. Then it has computed out [M, N] (+)= x [M, K] times
        weight [N, K] transposed."""
        name = key(x, weight, add=add)
        if self._peers and name not in self.ranks:
            self.ranks[name] = self._fastest(name, x, weight, out, add=add)
        rank = self.ranks.get(name, 0)
        if rank == 0 or rank >= self._proposing.num_proposals(len(x), *weight.shape):
            return False
        self._proposing.multiply(x, weight, out, rank, add=add)
        return True

    def _fastest(self, name: str, x: Tensor, weight: Tensor, out: Tensor, *, add: bool) -> int:
        """torch's where no other is faster by `LEAST_GAIN`."""
        peers = [peer for peer in self._peers if peer.shape == weight.shape] or [weight]
        peers = peers[: max(2, PEER_BYTES // weight.nbytes)]
        x.normal_()
        out.zero_()

        def launch(rank: int) -> None:
            for peer in peers:
                self._proposing.multiply(x, peer, out, rank, add=add)

        ranks = range(self._proposing.num_proposals(len(x), *weight.shape))
        try:
            seconds = self._times([partial(launch, rank) for rank in ranks], ROUNDS)
        except RuntimeError as error:
            log.warning("%s: cuBLASLt's kernels cannot be timed (%s); using torch's", name, error)
            return 0
        best = min(ranks, key=seconds.__getitem__, default=0)
        return best if seconds and seconds[0] > (1 + LEAST_GAIN) * seconds[best] else 0


def key(x: Tensor, weight: Tensor, *, add: bool) -> str:
    num_outputs, num_inputs = weight.shape
    return f"{num_outputs}x{num_inputs}-m{len(x)}" + ("-add" if add else "")
