"""A gated product of many rows: what stands between the two halves of a long prompt's MLP, in one launch.

The library's product of gate and up leaves twice what the next one reads, and an activation reads and writes it again:
an eighth of the time of the two for 2,048 columns. Here gates and what they gate are summed side by side by one
instruction, meet in the registers of a thread, and what leaves the processor is done. Tiles are read and written by
tensor descriptors; as many programs as there are processors take them one after the other, so that a program asks for
its next tile while it finishes one. Rows and columns past the end are read as zeros and not written. Tiles of GROUP
rows of tiles go together, so that what they share is found in the L2 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .activation import activated
from .product import multiplied

GROUP = 16


@triton.jit
def _placed(tile, tall, broad, GROUP: tl.constexpr):
    """Where a tile lies, of `tall` x `broad`."""
    group = tile // (GROUP * broad)
    height = tl.minimum(tall - group * GROUP, GROUP)
    within = tile % (GROUP * broad)
    return group * GROUP + within % height, within // height


@triton.jit(do_not_specialize=["M"])
def wide_gated(
    x, weight, bias, out, M, N, K,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Descriptors of x [M, K] in blocks of [ROWS, BLOCK_K], weight [2, N, K] (gates first) of [2, BLOCK_N, BLOCK_K] and
    out [M, N] of [ROWS, BLOCK_N]; one variant for every M. Grid: the processors, or the tiles where they are fewer."""
    tall, broad = tl.cdiv(M, ROWS), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tall * broad, tl.num_programs(0)):
        row, column = _placed(tile, tall, broad, GROUP)
        m, n = row * ROWS, column * BLOCK_N
        total = tl.zeros([ROWS, 2 * BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            w = tl.reshape(weight.load([0, n, k]), [2 * BLOCK_N, BLOCK_K])
            total = multiplied(x.load([m, k]), w.T, total, PRECISION)
        gate, up = tl.split(tl.permute(tl.reshape(total, [ROWS, 2, BLOCK_N]), [0, 2, 1]))
        if bias is not None:
            at = n + tl.arange(0, BLOCK_N)
            gate += tl.load(bias + at, mask=at < N, other=0.0).to(tl.float32)[None, :]
            up += tl.load(bias + N + at, mask=at < N, other=0.0).to(tl.float32)[None, :]
        out.store([m, n], (activated(gate, ACTIVATION) * up).to(out.dtype))


def in_blocks(matrix: Tensor, *block: int) -> TensorDescriptor:
    """A contiguous matrix, as the kernel reads or writes it."""
    return TensorDescriptor.from_tensor(matrix, list(block))
