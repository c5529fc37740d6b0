"""The linear layers of a decoder on one device, each as few launches as its shape and rows allow.

A decode layer is four of these calls and an attention: `norm_linear` (queries, keys, values), `linear_add` (output
projection into the residual stream), `norm_up` (gate, up and activation), `linear_add` (down). The output layer is a
`norm_linear` of chosen rows. Which kernel runs is settled by shape and number of rows alone, at the call: nothing reads
the device and nothing is allocated, so every call may be captured in a graph.

In deterministic mode every product is the same kernel with the same blocks whatever the number of rows, so a row's
result does not depend on its neighbours, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .activation import activation
from .choice import LIBRARY, Choice, Task, default_choice, fixed_choice
from .dependent import can_depend
from .gemv import gemv
from .norm import Norm, norm
from .product import product
from .resident import resident
from .weight import Weight, widen
from .workspace import WIDENED, allocated, for_linears

log = logging.getLogger(__name__)

PRECISION = "interpreted" if triton.knobs.runtime.interpret else "ieee"
"""A parameter of the kernels and not a constant beside them: the keys of Triton's cache would depend on the order in
which kernels that share such a constant are first used."""


class Extras(NamedTuple):
    """What a product does besides multiplying: norm its rows first, then activate, gate, or add to what is there."""

    norm: Norm | None = None
    activation: str | None = None
    gated: bool = False
    add: bool = False


class Linears:
    """Owns the workspace: used by one stream at a time.

    `max_tokens` rows of at most `normed_width` go into a norm, of at most `up_width` (twice the intermediate size
    where gated) into an activation. `tuned` holds choices by `Task.key`.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_tokens: int,
        normed_width: int,
        up_width: int,
        eight_bit: bool = False,
        deterministic: bool = False,
        tuned: Mapping[str, Choice] | None = None,
    ) -> None:
        self._deterministic = deterministic
        self.tuned = {} if tuned is None else dict(tuned)
        buffers = for_linears(
            str(dtype).removeprefix("torch."), max_tokens=max_tokens, normed_width=normed_width,
            up_width=up_width, eight_bit=eight_bit,
        )  # fmt: skip
        self._normed, self._ups, self._widened, self._parts, self._arrivals = allocated(
            buffers, device
        ).values()
        self._pdl = can_depend(device)

    @property
    def num_bytes(self) -> int:
        """Of the workspace."""
        owned = (self._normed, self._ups, self._widened, self._parts, self._arrivals)
        return sum(tensor.nbytes for tensor in owned)

    def linear(self, x: Tensor, weight: Weight, out: Tensor) -> None:
        """x [M, K] contiguous, out [M, N]."""
        self._run(x, None, weight, out, Extras())

    def norm_linear(
        self, x: Tensor, norm: Norm, weight: Weight, out: Tensor, rows: Tensor | None = None
    ) -> None:
        """out [M, N] = linear(norm(x)), x [M, K]; or of the M rows of x named by the int32 `rows`."""
        self._run(x, rows, weight, out, Extras(norm=norm))

    def norm_up(
        self, x: Tensor, norm: Norm, weight: Weight, activation: str, out: Tensor, *, gated: bool
    ) -> None:
        """x [M, H]; out [M, I] = activation(gate) * up of norm(x), weight [2 * I, H] with the gates first; or, where
        not gated, activation(up), weight [I, H]."""
        self._run(x, None, weight, out, Extras(norm, activation, gated))

    def linear_add(self, x: Tensor, weight: Weight, residual: Tensor) -> None:
        """Add linear(x), x [M, K], to residual [M, N] in place."""
        self._run(x, None, weight, residual, Extras(add=True))

    def choice(self, task: Task) -> Choice:
        if self._deterministic:
            return fixed_choice(task)
        tuned = self.tuned.get(task.key)
        return tuned if tuned is not None and tuned.fits(task) else default_choice(task)

    def _run(self, x: Tensor, rows: Tensor | None, weight: Weight, out: Tensor, extras: Extras) -> None:
        (num_rows, num_outputs), bits = out.shape, weight.values.dtype.itemsize * 8
        if num_rows == 0:
            return
        can_fuse = extras.norm is not None and extras.norm.rms and not self._deterministic
        task = Task(num_outputs, x.size(1), num_rows, bits, can_fuse, extras.gated, extras.add)
        try:
            self._by(self.choice(task), x, rows, weight, out, extras, can_fuse)
        except triton.OutOfResources:
            if self._deterministic:
                raise
            log.warning("%s: this card cannot hold %s; using the library", task.key, self.choice(task))
            self.tuned[task.key] = LIBRARY
            self._by(LIBRARY, x, rows, weight, out, extras, can_fuse)

    def _by(
        self,
        choice: Choice,
        x: Tensor,
        rows: Tensor | None,
        weight: Weight,
        out: Tensor,
        extras: Extras,
        can_fuse: bool,
    ) -> None:
        if extras.norm is not None and not (can_fuse and choice.fuses_norm):
            normed = self._normed[: out.size(0) * x.size(1)].view(out.size(0), -1)
            norm(x, extras.norm, normed, rows)
            x, rows, extras = normed, None, extras._replace(norm=None)
        if choice.kind == "gemv":
            self._by_gemv(choice, x, rows, weight, out, extras)
        elif choice.kind == "resident":
            self._by_resident(choice, x, rows, weight, out, extras)
        elif choice.kind == "product":
            self._by_product(choice, x, weight, out, extras)
        else:
            self._by_library(x, weight, out, extras)

    def _by_gemv(
        self, choice: Choice, x: Tensor, rows: Tensor | None, weight: Weight, out: Tensor, extras: Extras
    ) -> None:
        norm_weight, eps = (None, 0.0) if extras.norm is None else (extras.norm.weight, extras.norm.eps)
        n = out.size(1)
        gemv[(triton.cdiv(n, choice.block_n),)](
            x, rows, weight.values, weight.scale, weight.bias, norm_weight, out, eps, n,
            x.size(1), choice.block_n, choice.block_k, extras.gated, extras.activation, extras.add, self._pdl,
            num_warps=choice.warps, launch_pdl=self._pdl,
        )  # fmt: skip

    def _by_resident(
        self, choice: Choice, x: Tensor, rows: Tensor | None, weight: Weight, out: Tensor, extras: Extras
    ) -> None:
        norm_weight, eps = (None, 0.0) if extras.norm is None else (extras.norm.weight, extras.norm.eps)
        num_rows, n = out.shape
        resident[(triton.cdiv(n, choice.block_n),)](
            x, rows, weight.values, weight.scale, weight.bias, norm_weight, out, eps, num_rows, n,
            x.size(1), choice.rows, choice.block_n, choice.block_k, choice.splits,
            extras.gated, extras.activation, extras.add, PRECISION, self._pdl,
            num_warps=choice.warps, launch_pdl=self._pdl,
        )  # fmt: skip

    def _by_product(self, choice: Choice, x: Tensor, weight: Weight, out: Tensor, extras: Extras) -> None:
        (num_rows, n), k = out.shape, x.size(1)
        blocks, tiles = triton.cdiv(n, choice.block_n), triton.cdiv(num_rows, choice.rows)
        even = k % (choice.block_k * choice.splits) == 0
        product[(blocks, tiles, choice.splits)](
            x, weight.values, weight.scale, weight.bias, out, self._parts, self._arrivals, num_rows, n, k,
            choice.rows, choice.block_n, choice.block_k, choice.splits, even,
            extras.gated, extras.activation, extras.add, PRECISION, choice.prefetch, self._pdl,
            num_warps=choice.warps, num_stages=choice.stages, launch_pdl=self._pdl,
        )  # fmt: skip

    def _by_library(self, x: Tensor, weight: Weight, out: Tensor, extras: Extras) -> None:
        if extras.activation is None:
            self._multiply(x, weight, out, beta=int(extras.add))
            return
        ups = self._ups[: x.size(0) * weight.num_outputs].view(x.size(0), -1)
        self._multiply(x, weight, ups, beta=0)
        activation(ups, extras.activation, out, gated=extras.gated)

    def _multiply(self, x: Tensor, weight: Weight, out: Tensor, *, beta: int) -> None:
        """out = beta * out + the library's product, then the bias; an 8-bit weight is widened a part at a time."""
        if weight.scale is None:
            torch.addmm(out, x, weight.values.t(), beta=beta, out=out)
        else:
            step = WIDENED // weight.num_inputs
            for at in range(0, weight.num_outputs, step):
                values = weight.values[at : at + step]
                wide = self._widened[: values.numel()].view(values.shape)
                widen(values, weight.scale[at : at + step], wide)
                part = out[:, at : at + step]
                torch.addmm(part, x, wide.t(), beta=beta, out=part)
        if weight.bias is not None:
            out += weight.bias
