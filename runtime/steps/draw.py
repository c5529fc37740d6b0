"""The draw: temperature, top_k, top_p, min_p, then one uniform number through the inverse of the distribution.

The definition, for every device: weights are exp((logit - highest) / temperature) in float32. Sorted by falling
weight and rising id, `top_k` keeps the first k; `top_p` keeps a token while the mass before it is below top_p of
what top_k left; `min_p` keeps what weighs at least min_p of the heaviest. The token drawn is the first, in order of
id, at which the running sum of the kept weights (float64) exceeds uniform * their total.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..batch import RowSampling

CANDIDATES = 256
_BLOCK = 128


def draw(logits: Tensor, samplings: Sequence[RowSampling], uniforms: Sequence[float]) -> list[int]:
    """logits [rows, vocab], finite or -inf, at least one finite in each row; temperatures above 0."""
    temperatures = torch.tensor([sampling.temperature for sampling in samplings])
    scaled = (logits - logits.amax(1, True)) / temperatures[:, None]
    points = torch.tensor(uniforms, dtype=torch.float64)
    tokens = [0] * len(samplings)
    for cuts, drawing in ((False, _draw_whole), (True, _draw_cut)):
        rows = [i for i, sampling in enumerate(samplings) if _cuts(sampling) == cuts]
        if rows:
            drawn = drawing(scaled[rows], [samplings[i] for i in rows], points[rows])
            for i, token in zip(rows, drawn, strict=True):
                tokens[i] = token
    return tokens


def _cuts(sampling: RowSampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0


def _blocks(weights: Tensor) -> Tensor:
    """[rows, blocks, 128], with zeros at the end: sums within a block have one order whatever the batch."""
    short = -weights.size(1) % _BLOCK
    return (pad(weights, (0, short)) if short else weights).view(len(weights), -1, _BLOCK)


def _draw_whole(scaled: Tensor, samplings: Sequence[RowSampling], points: Tensor) -> list[int]:
    """First the block where the running sum passes the point, then the token in it."""
    blocks = _blocks(scaled.exp())
    sums = blocks.sum(2, dtype=torch.float64).cumsum(1)
    targets = points * sums[:, -1]
    block = _first_above(sums, targets, blocks.amax(2) > 0)
    rows = torch.arange(len(scaled))
    inside = blocks[rows, block].double()
    before = torch.where(block > 0, sums[rows, block - 1], 0.0)
    token = _first_above(inside.cumsum(1) + before[:, None], targets, inside > 0)
    tokens: list[int] = (block * _BLOCK + token).tolist()
    return tokens


def _first_above(sums: Tensor, targets: Tensor, possible: Tensor) -> Tensor:
    """Index of the first running sum above the target, and never past the last possible one, whatever the rounding."""
    last = sums.size(1) - 1 - possible.flip(1).to(torch.uint8).argmax(1)
    return torch.minimum((sums <= targets[:, None]).sum(1), last)


def _draw_cut(scaled: Tensor, samplings: Sequence[RowSampling], points: Tensor) -> list[int]:
    vocab = scaled.size(1)
    totals = _blocks(scaled.exp()).sum(2, dtype=torch.float64).cumsum(1)[:, -1]
    values, ids = _likeliest(scaled, min(CANDIDATES, vocab))
    keep = _kept(values, samplings, totals)
    tokens = _invert(values, ids, keep, points, vocab)
    lowest = values.gather(1, keep.sum(1, keepdim=True) - 1)[:, 0]
    inside = (lowest > values[:, -1]).tolist()  # else a token that is no candidate may belong
    for i, sampling in enumerate(samplings):
        if vocab > CANDIDATES and (sampling.top_k > CANDIDATES or not inside[i]):
            row = slice(i, i + 1)
            values, ids = scaled[row].sort(dim=1, descending=True, stable=True)
            keep = _kept(values, samplings[row], totals[row])
            tokens[i] = _invert(values, ids, keep, points[row], vocab)[0]
    return tokens


def _likeliest(scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and ids by falling value, then rising id."""
    values, ids = scaled.topk(count, sorted=False)
    ids, order = ids.sort(1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _kept(values: Tensor, samplings: Sequence[RowSampling], totals: Tensor) -> Tensor:
    """Which of the sorted values survive the three cuts: a prefix of each row."""
    size = values.size(1)
    top_k = torch.tensor([sampling.top_k or size for sampling in samplings])[:, None]
    unlimited = torch.tensor([sampling.top_k == 0 for sampling in samplings])
    top_p = torch.tensor([sampling.top_p for sampling in samplings], dtype=torch.float64)
    min_p = torch.tensor([sampling.min_p for sampling in samplings], dtype=torch.float64)
    within = torch.arange(size) < top_k
    weights = values.exp().double() * within
    sums = weights.cumsum(1)
    totals = torch.where(unlimited, totals, sums[:, -1])
    by_mass = (sums - weights < (top_p * totals)[:, None]) | (top_p == 1.0)[:, None]
    keep = within & by_mass & (weights >= min_p[:, None]) & (values > float("-inf"))
    keep[:, 0] = True
    return keep


def _invert(values: Tensor, ids: Tensor, keep: Tensor, points: Tensor, vocab: int) -> list[int]:
    ids, order = torch.where(keep, ids, vocab).sort(1)
    weights = (values.exp().double() * keep).gather(1, order)
    sums = weights.cumsum(1)
    index = _first_above(sums, points * sums[:, -1], weights > 0)
    tokens: list[int] = ids.gather(1, index[:, None])[:, 0].tolist()
    return tokens
