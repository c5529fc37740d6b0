"""Triton's interpreter with exact conversions between float types and products of bfloat16, which it lacks: there
bfloat16 is truncated, 8-bit floats overflow when they round up, and products multiply the raw bits. It is made faster
too: the language is patched once a launch, not at every call of a function, and the highest value that keeps a NaN is
found by numpy, not one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from jitney.runtime.kernels.scan import _higher

TORCH = {
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}


def as_torch(handle: Any) -> torch.Tensor:
    raw = torch.from_numpy(
        np.ascontiguousarray(handle.data).view(f"int{handle.dtype.scalar.primitive_bitwidth}")
    )
    return raw.view(TORCH[handle.dtype.scalar]).view(handle.data.shape)


def repair() -> None:
    """Once per process; harmless where kernels run on a card."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "is_repaired", False):
        return
    cast, fp_to_fp, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot
    patch_lang, reduce = interpreter._patch_lang, interpreter.ReduceOps.apply_impl

    def converted(src: Any, dst_type: Any) -> Any:
        dst = dst_type.scalar
        width = dst.primitive_bitwidth
        raw = as_torch(src).to(TORCH[dst]).view(getattr(torch, f"int{width}")).numpy()
        return interpreter.TensorHandle(raw.view(interpreter._get_np_dtype(dst)).reshape(src.data.shape), dst)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar in TORCH and dst_type.scalar in TORCH:
            return converted(src, dst_type)
        return cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if src.dtype.scalar in TORCH and dst_type.scalar in TORCH:
            return converted(src, dst_type)
        return fp_to_fp(self, src, dst_type, rounding_mode)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return dot(self, converted(a, tl.float32), converted(b, tl.float32), d, *options)

    def patch_once(fn: Any) -> Any:
        seen = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        is_patched = not any(tl.core.is_builtin(lang.load) for lang in seen)
        return interpreter._LangPatchScope() if is_patched else patch_lang(fn)

    def apply_impl(self: Any, values: Any) -> Any:
        if self.combine_fn is _higher:
            return self.min_max(values[0], val_reduce_op=np.max)
        return reduce(self, values)

    interpreter._patch_lang, interpreter.ReduceOps.apply_impl = patch_once, apply_impl
    builder.cast_impl, builder.create_fp_to_fp, builder.create_dot = cast_impl, create_fp_to_fp, create_dot
    builder.is_repaired = True
