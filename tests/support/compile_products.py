"""Compiles what computes with weights of eight bits for a card that need not be there: `python compile_products.py 90`.

Prints the shared memory that the largest takes. Products must multiply e4m3 by e4m3, and not what it was widened to;
int8 is widened to bf16."""

from __future__ import annotations

import sys
from typing import Any

from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from jitney.runtime.kernels.activation import _activation
from jitney.runtime.kernels.choice import Choice, Task, default_choice, fixed_choice
from jitney.runtime.kernels.gemv import gemv
from jitney.runtime.kernels.narrowing import narrowing
from jitney.runtime.kernels.norm import _norm
from jitney.runtime.kernels.product import product

NARROW = "*fp8e4nv"
TYPES = {
    **dict.fromkeys(("weight", "out", "bias"), "*bf16"),
    **dict.fromkeys(("x_scale", "scale", "narrow", "parts"), "*fp32"),
    **dict.fromkeys(("M", "N", "width"), "i32"),
    "arrivals": "*i32",
    "eps": "fp32",
}
BOTH = {"x": NARROW, "weight": NARROW}
WHOLE = {"x": "*bf16", "weight": "*i8", "norm": "*bf16"}
PLAIN = {"GATED": False, "ACTIVATION": None, "ADD": True, "bias": None}
K = 4096


def kernel(function: Any, target: GPUTarget, types: dict[str, str], stages: int, **constants: Any) -> Any:
    warps = constants.pop("warps", 4)
    constants["PDL"] = target.arch >= 90
    known = {**TYPES, **types}
    signature = {n: "constexpr" if n in constants else known[n] for n in function.arg_names}
    pointers = [i for i, name in enumerate(function.arg_names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=function, signature=signature, constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )  # fmt: skip
    return compiled(source, target=target, options={"num_warps": warps, "num_stages": stages})


def multiplying(choice: Choice, target: GPUTarget, types: dict[str, str], **what: Any) -> int:
    made = kernel(
        product, target, types, choice.stages, **what, K=K, ROWS=choice.rows,
        BLOCK_N=choice.block_n, BLOCK_K=choice.block_k, SPLITS=choice.splits, EVEN=True, PRECISION="ieee",
        PREFETCH=choice.prefetch, warps=choice.warps,
    )  # fmt: skip
    multiplied, other = ("e4m3.e4m3", "bf16.bf16") if types is BOTH else ("bf16.bf16", "e4m3.e4m3")
    assert multiplied in made.asm["ptx"] and other not in made.asm["ptx"]
    return int(made.metadata.shared)


def weight_only(target: GPUTarget) -> list[int]:
    """The choices that the smallest of the cards can hold, gated, and all of the largest's."""
    what = {"GATED": True, "ACTIVATION": "silu", "ADD": False, "bias": None, "x_scale": None}
    one = {"rows": None, "K": K, "BLOCK_N": 1, "BLOCK_K": 2048, "warps": 4}
    kernel(gemv, target, WHOLE, 1, **what, **one)
    tasks = [Task(K, K, rows, 16, True, True).stored_as("int8") for rows in (8, 64, 200)]
    choices = [fixed_choice(task) for task in tasks]
    if target.arch >= 90:
        choices += [default_choice(task) for task in tasks[:2]]
    return [multiplying(choice, target, WHOLE, **what) for choice in choices]


def main(capability: int) -> None:
    target = GPUTarget("cuda", capability, 32)
    narrow = {"x": "*bf16", "out": NARROW}
    kernel(_norm, target, narrow, 3, rows=None, bias=None, WIDTH=K, BLOCK=K, RMS=True)
    kernel(_activation, target, narrow, 3, ACTIVATION="silu", GATED=True, BLOCK=16384)
    one = {"rows": None, "norm": None, "K": K, "BLOCK_N": 4, "BLOCK_K": 512, "warps": 1}
    kernel(gemv, target, BOTH, 1, **PLAIN, **one)
    one = {"x_scale": None, "rows": None, "K": K, "BLOCK": K, "BLOCK_N": 2, "warps": 4}
    kernel(narrowing, target, BOTH | {"x": "*bf16", "norm": "*bf16"}, 1, **PLAIN, **one)
    many = fixed_choice(Task(K, K, 200, 8))
    choices = [default_choice(Task(K, K, 64, 8)), default_choice(Task(7 * K, K, 64, 8)), many]
    shared = [multiplying(choice, target, BOTH, **PLAIN) for choice in choices]
    sys.stdout.write(f"{max(*shared, *weight_only(target))}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
