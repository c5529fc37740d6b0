"""The linear layers of a decoder on one device, each as few launches as its shape and rows allow.

A decode layer is four of these calls and an attention: `norm_linear` (queries, keys, values), `linear_add` (output
projection into the residual stream), `norm_up` (gate, up and activation), `linear_add` (down). The output layer is a
`norm_linear` of chosen rows. Which kernel runs is settled by shape and number of rows alone, at the call: nothing reads
the device and nothing is allocated, so every call may be captured in a graph.

Where the weight is e4m3 its rows go in with eight bits too, whatever their number: the norm or activation before it
writes them so, or a launch that does nothing else, or, of one row, the product itself. An int8 weight is read in eight
bits and no more. In deterministic mode every product is the same kernel with the same blocks whatever the number of
rows, so a row's result does not depend on its neighbours, bit for bit.
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
from .narrow import Rows
from .narrowing import narrowing
from .norm import Norm, norm
from .processors import num_processors
from .product import product
from .resident import resident
from .weight import Weight
from .wide_gated import GROUP, in_blocks, wide_gated
from .wide_product import WideProducts
from .workspace import Widths, allocated, for_linears

log = logging.getLogger(__name__)

PRECISION = "interpreted" if triton.knobs.runtime.interpret else "ieee"
"""A parameter of the kernels and not a constant beside them: the keys of Triton's cache would depend on the order in
which kernels that share such a constant are first used."""


WARPS = 16
"""Of programs that narrow a row, on each multiprocessor."""


class Extras(NamedTuple):
    """What a product does besides multiplying: norm its rows first, then activate, gate, or add to what is there."""

    norm: Norm | None = None
    activation: str | None = None
    gated: bool = False
    add: bool = False


class Linears:
    """Owns the workspace, for `max_tokens` rows at most: used by one stream at a time. `tuned` holds choices by
    `Task.key`. `wide` computes those of the library's products that it wants, and may write to `scratch` then."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_tokens: int,
        widths: Widths,
        deterministic: bool = False,
        tuned: Mapping[str, Choice] | None = None,
    ) -> None:
        self._dtype, self._deterministic = dtype, deterministic
        self.tuned = {} if tuned is None else dict(tuned)
        self.wide: WideProducts | None = None
        self._buffers = allocated(for_linears(str(dtype).removeprefix("torch."), max_tokens, widths), device)
        self._pdl, self._processors = can_depend(device), num_processors(device)

    @property
    def scratch(self) -> Tensor:
        return self._buffers["parts"]

    def linear(self, x: Rows, weight: Weight, out: Tensor) -> None:
        """x [M, K] contiguous, out [M, N]."""
        self._run(x, None, weight, out, Extras())

    def norm_linear(
        self, x: Tensor, norm: Norm, weight: Weight, out: Tensor, rows: Tensor | None = None
    ) -> None:
        """out [M, N] = linear(norm(x)), x [M, K]; or of the M rows of x named by the int32 `rows`."""
        self._run(Rows(x), rows, weight, out, Extras(norm=norm))

    def norm_up(self, x: Tensor, norm: Norm, weight: Weight, name: str, *, gated: bool) -> Rows:
        """x [M, H]; gives [M, I], until the next call of this: activation(gate) * up of norm(x), weight [2 * I, H] with
        the gates first; or, where not gated, activation(up), weight [I, H]."""
        width = weight.num_outputs // (2 if gated else 1)
        narrow = Task(width, x.size(1), len(x), 8, gated=gated)
        if not weight.narrows or (narrow.can_narrow and self.choice(narrow).kind == "narrowing"):
            out = self._buffer("ups" if weight.narrows else "activated", len(x), width)
            self._run(Rows(x), None, weight, out, Extras(norm, name, gated))
            return Rows(out)
        ups, rows = self._buffer("ups", len(x), weight.num_outputs), self._narrow(len(x), width)
        self._run(Rows(x), None, weight, ups, Extras(norm=norm))
        activation(ups, name, rows, gated=gated)
        return rows

    def linear_add(self, x: Rows, weight: Weight, residual: Tensor) -> None:
        """Add linear(x), x [M, K], to residual [M, N] in place."""
        self._run(x, None, weight, residual, Extras(add=True))

    def choice(self, task: Task) -> Choice:
        if self._deterministic:
            return fixed_choice(task)
        tuned = self.tuned.get(task.key)
        found = tuned if tuned is not None and tuned.fits(task) else default_choice(task)
        if found.kind == "wide_gated" and not self._pdl:
            found = LIBRARY  # older cards have no hardware for tensor descriptors
        return found if found.kind != "library" or self._has_library(task) else fixed_choice(task)

    def _has_library(self, task: Task) -> bool:
        """torch multiplies rows of eight bits, on every card that has them, in multiples of 16 and into bf16; and it
        widens no weights."""
        if task.weight_only:
            return False
        is_even = task.num_outputs % 16 == 0 and task.num_inputs % 16 == 0
        return task.weight_bits > 8 or (is_even and self._dtype == torch.bfloat16)

    def _buffer(self, name: str, num_rows: int, width: int) -> Tensor:
        return self._buffers[name][: num_rows * width].view(num_rows, width)

    def _narrow(self, num_rows: int, width: int) -> Rows:
        return Rows(self._buffer("narrow", num_rows, width), self._buffers["scales"][:num_rows])

    def _run(self, x: Rows, rows: Tensor | None, weight: Weight, out: Tensor, extras: Extras) -> None:
        is_narrow, bits = weight.narrows, weight.values.dtype.itemsize * 8
        has_rms = extras.norm is not None and extras.norm.rms
        can_fuse = has_rms and not is_narrow and not self._deterministic
        is_widened = weight.scale is not None and not is_narrow
        task = Task(
            out.size(1), x.values.size(1), len(out), bits, can_fuse, extras.gated, extras.add, is_widened
        )
        if len(out) == 0:
            return
        choice = self.choice(task)
        is_ready = extras.norm is None and not (is_narrow and x.scale is None)
        narrows = choice.kind == "narrowing" and (extras.norm is None or has_rms)
        try:
            if is_ready or narrows or (can_fuse and choice.fuses_norm):
                self._by(choice, x, rows, weight, out, extras)
            else:
                ready = self._prepared(x.values, extras.norm, rows, len(out), is_narrow=is_narrow)
                self._by(choice, ready, None, weight, out, extras._replace(norm=None))
        except triton.OutOfResources:
            if self._deterministic or (choice == fixed_choice(task) and not self._has_library(task)):
                raise
            self.tuned[task.key] = LIBRARY
            log.warning("%s: this card cannot hold %s; using %s", task.key, choice, self.choice(task).kind)
            self._run(x, rows, weight, out, extras)

    def _prepared(
        self, x: Tensor, norm_: Norm | None, rows: Tensor | None, num_rows: int, *, is_narrow: bool
    ) -> Rows:
        """x as it goes into the product."""
        width = x.size(1)
        out = self._narrow(num_rows, width) if is_narrow else Rows(self._buffer("normed", num_rows, width))
        if norm_ is None:
            activation(x, None, out, gated=False)
        else:
            norm(x, norm_, out, rows)
        return out

    def _by(
        self, choice: Choice, x: Rows, rows: Tensor | None, weight: Weight, out: Tensor, extras: Extras
    ) -> None:
        if choice.kind == "gemv":
            self._by_gemv(choice, x, rows, weight, out, extras)
        elif choice.kind == "narrowing":
            self._by_narrowing(choice, x, rows, weight, out, extras)
        elif choice.kind == "resident":
            self._by_resident(choice, x.values, rows, weight, out, extras)
        elif choice.kind == "product":
            self._by_product(choice, x, weight, out, extras)
        elif choice.kind == "wide_gated":
            self._by_wide_gated(choice, x.values, weight, out, extras)
        else:
            self._by_library(x, weight, out, extras)

    def _by_gemv(
        self, choice: Choice, x: Rows, rows: Tensor | None, weight: Weight, out: Tensor, extras: Extras
    ) -> None:
        norm_weight, eps = (None, 0.0) if extras.norm is None else (extras.norm.weight, extras.norm.eps)
        n = out.size(1)
        gemv[(triton.cdiv(n, choice.block_n),)](
            x.values, rows, x.scale, weight.values, weight.scale, weight.bias, norm_weight, out, eps, n,
            x.values.size(1), choice.block_n, choice.block_k,
            extras.gated, extras.activation, extras.add, self._pdl,
            num_warps=choice.warps, launch_pdl=self._pdl,
        )  # fmt: skip

    def _by_narrowing(
        self, choice: Choice, x: Rows, rows: Tensor | None, weight: Weight, out: Tensor, extras: Extras
    ) -> None:
        norm_weight, eps = (None, 0.0) if extras.norm is None else (extras.norm.weight, extras.norm.eps)
        n = out.size(1)
        programs = self._processors * max(1, WARPS // choice.warps)
        narrowing[(min(programs, triton.cdiv(n, choice.block_n)),)](
            x.values, rows, x.scale, weight.values, weight.scale, weight.bias, norm_weight, out, eps, n,
            x.values.size(1), choice.block_k, choice.block_n,
            extras.gated, extras.activation, extras.add, self._pdl,
            num_warps=choice.warps, launch_pdl=self._pdl,
        )  # fmt: skip

    def _by_resident(
        self, choice: Choice, x: Tensor, rows: Tensor | None, weight: Weight, out: Tensor, extras: Extras
    ) -> None:
        norm_weight, eps = (None, 0.0) if extras.norm is None else (extras.norm.weight, extras.norm.eps)
        num_rows, n = out.shape
        resident[(triton.cdiv(n, choice.block_n),)](
            x, rows, weight.values, weight.bias, norm_weight, out, eps, num_rows, n,
            x.size(1), choice.rows, choice.block_n, choice.block_k, choice.splits,
            extras.gated, extras.activation, extras.add, PRECISION, self._pdl,
            num_warps=choice.warps, launch_pdl=self._pdl,
        )  # fmt: skip

    def _by_product(self, choice: Choice, x: Rows, weight: Weight, out: Tensor, extras: Extras) -> None:
        (num_rows, n), k = out.shape, x.values.size(1)
        blocks, tiles = triton.cdiv(n, choice.block_n), triton.cdiv(num_rows, choice.rows)
        even = k % (choice.block_k * choice.splits) == 0
        product[(blocks, tiles, choice.splits)](
            x.values, x.scale, weight.values, weight.scale, weight.bias, out,
            self._buffers["parts"], self._buffers["arrivals"], num_rows, n, k,
            choice.rows, choice.block_n, choice.block_k, choice.splits, even,
            extras.gated, extras.activation, extras.add, PRECISION, choice.prefetch, self._pdl,
            num_warps=choice.warps, num_stages=choice.stages, launch_pdl=self._pdl,
        )  # fmt: skip

    def _by_wide_gated(self, choice: Choice, x: Tensor, weight: Weight, out: Tensor, extras: Extras) -> None:
        (num_rows, n), k, rows, width = out.shape, x.size(1), choice.rows, choice.block_n
        tiles = triton.cdiv(num_rows, rows) * triton.cdiv(n, width)
        wide_gated[(min(tiles, self._processors),)](
            in_blocks(x, rows, choice.block_k), in_blocks(weight.values.view(2, n, k), 2, width, choice.block_k),
            weight.bias, in_blocks(out, rows, width), num_rows, n, k,
            rows, width, choice.block_k, GROUP, extras.activation, PRECISION,
            num_warps=choice.warps, num_stages=choice.stages,
        )  # fmt: skip

    def _by_library(self, x: Rows, weight: Weight, out: Tensor, extras: Extras) -> None:
        """In eight bits there is no activation, and what is added is a product of its own first."""
        is_apart = extras.activation is not None or (extras.add and x.scale is not None)
        total = self._buffer("ups", len(out), weight.num_outputs) if is_apart else out
        if x.scale is None or weight.scale is None:
            self._multiply(x.values, weight.values, total, add=extras.add)
        else:
            torch._scaled_mm(
                x.values, weight.values.t(), scale_a=x.scale.unsqueeze(1), scale_b=weight.scale.unsqueeze(0),
                out_dtype=out.dtype, use_fast_accum=True, out=total,
            )  # fmt: skip
        if weight.bias is not None:
            total += weight.bias
        if extras.activation is not None:
            activation(total, extras.activation, Rows(out), gated=extras.gated)
        elif is_apart:
            out += total

    def _multiply(self, x: Tensor, weight: Tensor, out: Tensor, *, add: bool) -> None:
        if add or self.wide is None or not self.wide.computes(x, weight, out):
            torch.addmm(out, x, weight.t(), beta=int(add), out=out)
