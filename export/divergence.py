"""How far narrowed logits are from the source's, gathered over slices of the vocabulary, so that no whole row of
logits for all positions is ever in memory."""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from ..runtime.weights.manifest import Quality

MOST_NATS = 700.0
"""That a float can hold the exponential of: a model of random weights has more."""


class Divergence:
    """Hidden states [positions, hidden] of both, and the token that follows each position [positions], -1 where none
    does. `add` takes the output layers' rows, slice by slice, in order."""

    def __init__(self, plain: Tensor, narrow: Tensor, targets: Tensor) -> None:
        self._sides = (_Side(plain, targets), _Side(narrow, targets))
        self._gap = torch.zeros(len(plain))  # sum of exp(plain - peak) * (plain - narrow)
        self._known = targets >= 0

    def add(self, plain: Tensor, narrow: Tensor) -> None:
        """The same rows of both output layers, float32."""
        first, second = (side.add(rows) for side, rows in zip(self._sides, (plain, narrow), strict=True))
        weights = (first - self._sides[0].peak[:, None]).exp_()
        self._gap = self._gap * self._sides[0].shrink + weights.mul_(first - second).sum(1)

    def quality(self, text: str) -> Quality:
        plain, narrow = self._sides
        divergence = self._gap / plain.total - plain.normaliser() + narrow.normaliser()
        return Quality(
            text=text,
            num_tokens=int(self._known.sum()),
            source_perplexity=plain.perplexity(self._known),
            perplexity=narrow.perplexity(self._known),
            kl=float(divergence.mean().clamp_min(0.0)),
            agreement=float((plain.best == narrow.best).float().mean()),
        )


class _Side:
    """The softmax of one side, gathered online."""

    def __init__(self, hidden: Tensor, targets: Tensor) -> None:
        self._hidden, self._targets, self._start = hidden, targets, 0
        self.peak = torch.full((len(hidden),), -torch.inf)
        self.total = torch.zeros(len(hidden))
        self.shrink = torch.zeros(len(hidden))
        self.best = torch.zeros(len(hidden), dtype=torch.int64)
        self._target_logits = torch.zeros(len(hidden))

    def add(self, rows: Tensor) -> Tensor:
        logits = self._hidden @ rows.T
        top, at = logits.max(1)
        self.best = torch.where(top > self.peak, at + self._start, self.best)
        peak = torch.maximum(top, self.peak)
        self.shrink = (self.peak - peak).exp()
        self.total = self.total * self.shrink + (logits - peak[:, None]).exp_().sum(1)
        self.peak = peak
        here = (self._targets >= self._start) & (self._targets < self._start + len(rows))
        self._target_logits[here] = logits[here, self._targets[here] - self._start]
        self._start += len(rows)
        return logits

    def normaliser(self) -> Tensor:
        return self.peak + self.total.log()

    def perplexity(self, known: Tensor) -> float:
        """At most e to the power of `MOST_NATS`; NaN where a logit is no number."""
        return exp(min(float((self.normaliser() - self._target_logits)[known].mean()), MOST_NATS))
