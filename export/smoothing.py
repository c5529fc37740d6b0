"""Scales that make the inputs of a matrix easier to round: an input is divided by its scale, the column that meets
it multiplied, so that the product stays. (SmoothQuant, Xiao et al. 2022, and AWQ, Lin et al. 2023, with the strength
chosen for each matrix by the error that is left on calibration text.)"""

from __future__ import annotations

import torch
from torch import Tensor

from .rounding import Rounding

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MAX_SAMPLES = 256
MAX_ROWS = 1024
"""Of a tall matrix, on which the search is made."""


class Inputs:
    """What a matrix was multiplied by: the largest of each input, its mean square, and a sample of rows."""

    def __init__(self, num_inputs: int, num_rows: int) -> None:
        """`num_rows`: how many will be seen."""
        self.peak = torch.zeros(num_inputs)
        self._squares = torch.zeros(num_inputs)
        self._seen = 0
        self._stride = max(1, -(-num_rows // MAX_SAMPLES))
        self._samples: list[Tensor] = []

    def see(self, x: Tensor) -> None:
        """x [rows, inputs]."""
        self.peak = torch.maximum(self.peak, x.abs().amax(0))
        self._squares += x.square().sum(0)
        self._samples.append(x[(-self._seen) % self._stride :: self._stride].clone())
        self._seen += len(x)

    @property
    def largest(self) -> float:
        return float(self.peak.max())

    @property
    def mean_square(self) -> Tensor:
        return self._squares / max(1, self._seen)

    @property
    def sample(self) -> Tensor:
        return torch.cat(self._samples)


def smoothing(inputs: Inputs, weight: Tensor, rounding: Rounding, owners: Tensor | None = None) -> Tensor:
    """A scale for each input of weight [out, in]. Inputs with the same owner get the same one."""
    ones = torch.ones(weight.size(1))
    if rounding.narrowing == "fp8":
        return ones
    weight = weight[:: -(-len(weight) // MAX_ROWS)]
    x, wanted = inputs.sample, inputs.sample @ weight.T
    best, lowest = ones, _error(inputs, x, weight, wanted, ones, rounding)
    for strength in STRENGTHS:
        tried = _candidate(inputs, weight, strength, rounding, owners)
        error = _error(inputs, x, weight, wanted, tried, rounding)
        if error < lowest:
            best, lowest = tried, error
    return best


def _candidate(
    inputs: Inputs, weight: Tensor, strength: float, rounding: Rounding, owners: Tensor | None
) -> Tensor:
    if rounding.narrowing == "int8":
        peak, height = (_shared(part, owners).clamp_min(1e-5) for part in (inputs.peak, weight.abs().amax(0)))
        scale = peak**strength / height ** (1 - strength)
    else:
        size = _shared(inputs.mean_square.sqrt(), owners).clamp_min(1e-5)
        scale = size ** (strength - STRENGTHS[0] / 2)
    return scale / scale.log().mean().exp()


def _shared(values: Tensor, owners: Tensor | None) -> Tensor:
    if owners is None:
        return values
    largest = torch.zeros(int(owners.max()) + 1).scatter_reduce_(0, owners, values, "amax")
    return largest[owners]


def _error(
    inputs: Inputs, x: Tensor, weight: Tensor, wanted: Tensor, scale: Tensor, rounding: Rounding
) -> float:
    narrowed = rounding.matrix(weight * scale, inputs.mean_square / scale.square())
    return float((rounding.inputs(x / scale, inputs.largest) @ narrowed.dense.T - wanted).square().sum())
