"""What Triton has no word for, in the card's assembly; where ASSEMBLY is false (in the interpreter), in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fetch_early(page, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr):
    """Ask for a head's page to come into the L2 cache, and wait for nothing."""
    LINE: tl.constexpr = 1024 // page.dtype.element_ty.primitive_bitwidth
    lines = tl.arange(0, DIM // LINE if DIM > LINE else 1) * LINE
    at = page + tl.arange(0, PAGE)[:, None] * HEAD_DIM + lines[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )  # fmt: skip


@triton.jit
def widened(values, FACTOR: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Values of a page as factors of a product. Eight bits are widened before they are rearranged, which the compiler
    would do the other way round, byte by byte."""
    if ASSEMBLY and values.dtype == tl.float8e4nv:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 lo, hi; mov.b32 {lo, hi}, $2;"
            " cvt.rn.f16x2.e4m3x2 $0, lo; cvt.rn.f16x2.e4m3x2 $1, hi; }",
            "=r,=r,r", [values], tl.float16, is_pure=False, pack=4,
        )  # fmt: skip
    else:
        return values.to(FACTOR)


@triton.jit
def page_at(entry, ASSEMBLY: tl.constexpr):
    """A page number from a table. By `tl.load` it would take up half of the pipeline's stages."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "ld.global.nc.s32 $0, [$1];", "=r,l", [entry.to(tl.int64)], tl.int32, is_pure=True, pack=1
        )  # fmt: skip
    else:
        return tl.load(entry)
