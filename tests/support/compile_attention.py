"""Compiles the attention kernels for a card that need not be there: `python compile_attention.py 90`.

The interpreter runs a kernel line by line; only the compiler checks that its types agree, and what a card holds."""

from __future__ import annotations

import sys
from typing import Any

from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from jitney.runtime.kernels.decode_attention import decode_attention_kernel
from jitney.runtime.kernels.decode_plan import decode_plan_kernel
from jitney.runtime.kernels.prefill_attention import prefill_attention_kernel
from jitney.runtime.kernels.rope_write import rope_write_kernel

WORDS = (
    "slots",
    "positions",
    "tables",
    "plan",
    "arrivals",
    "chunk_slots",
    "chunk_starts",
    "chunk_offsets",
    "chunk_counts",
)
TYPES = {
    **dict.fromkeys(WORDS, "*i32"),
    **dict.fromkeys(("qkv", "norm", "out"), "*bf16"),
    **dict.fromkeys(("cos", "sin", "parts", "stats"), "*fp32"),
    **dict.fromkeys(("eps", "k_scale", "v_scale", "scale"), "fp32"),
    **dict.fromkeys(("num_rows", "num_chunks", "token_stride", "pages_per_row", "idle"), "i32"),
}
SHAPE = {"Q_HEADS": 16, "KV_HEADS": 8, "PAGE": 64}
DECODE = {
    "GROUP_ROWS": 2,
    "TILE_ROWS": 16,
    "PARTS": 32,
    "ASSEMBLY": True,
    "STAGES": 3,
    "NORM": True,
    "WINDOW": 0,
}
TURN = {"NORM": True, "KEEP_KEYS": True, "HEADS": 16, "HALF": 64, "DIM": 128}


def shared_bytes(kernel: Any, target: GPUTarget, pool: str, constants: dict[str, Any], warps: int) -> int:
    types = {**TYPES, "pool": pool}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    pointers = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    return int(compiled(source, target=target, options={"num_warps": warps}).metadata.shared)


def main(capability: int) -> None:
    target = GPUTarget("cuda", capability, 32)
    hopper = capability >= 90
    stored = ["bf16", "fp8e4nv"] if capability >= 89 else ["bf16"]
    heads = {**SHAPE, "HEAD_DIM": 128, "DIM": 128}
    most = 0
    for kind in stored:
        most = max(
            most,
            shared_bytes(decode_attention_kernel, target, f"*{kind}", {**heads, **DECODE, "PDL": hopper}, 4),
        )
        chunks = {**heads, "CHUNKS": 16, "TILE": 64, "WINDOW": 100, "FP8": kind != "bf16"}
        lines, stages, warps = f"tensordesc<{kind}[64, 128]>", 5 if hopper else 2, 4 if hopper else 8
        most = max(
            most, shared_bytes(prefill_attention_kernel, target, lines, {**chunks, "STAGES": stages}, warps)
        )
    plan = {"KV_HEADS": 8, "PAGE": 64, "WINDOW": 100, "ROWS": 256, "LEAD": 1}
    most = max(most, shared_bytes(decode_plan_kernel, target, "*bf16", plan, 4))
    most = max(most, shared_bytes(rope_write_kernel, target, "*bf16", {**SHAPE, **TURN}, 4))
    sys.stdout.write(f"{most}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
