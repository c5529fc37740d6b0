"""Microseconds a layer's attention takes inside a captured graph, beside FlashAttention 3 where it can be imported.

    python benchmarks/kernels/attention.py [--kernels decode prefill rope_write] [--json FILE]

Decode: one launch that turns, writes and attends; FlashAttention 3's column is its attention alone, with the best of a
few split counts. Buffers rotate, so that keys and values come from memory and not from a cache. `floor` is their bytes
at 2.97 TB/s. Prefill counts 4 * head_dim * query heads operations per query and key that it sees.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from jitney.runtime.kernels import flash_attention as fa3
from jitney.runtime.kernels.decode_attention import DecodeAttention
from jitney.runtime.kernels.paging import Chunks, LayerCache, Rotary
from jitney.runtime.kernels.prefill_attention import prefill_attention
from jitney.runtime.kernels.rope_write import rope_write

DEVICE = torch.device("cuda")
PAGE = 64
BYTES_PER_US = 2.97e6
ROTATED_BYTES = 160e6
Row = dict[str, Any]


@dataclass(frozen=True)
class Heads:
    q: int
    kv: int
    dim: int
    norm: bool = False
    stored: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        return f"{self.q}/{self.kv}/{self.dim}" + (" fp8" if self.stored.itemsize == 1 else "")


QWEN_06B, LLAMA_8B, LLAMA_1B = Heads(16, 8, 128, norm=True), Heads(32, 8, 128), Heads(32, 8, 64)
LLAMA_8B_FP8 = Heads(32, 8, 128, stored=torch.float8_e4m3fn)
MIXED = [*range(64, 1024, 4)][:240] + [4096] * 15 + [32768]
DECODE = [
    *((heads, [1024] * rows) for heads in (QWEN_06B, LLAMA_1B, LLAMA_8B, LLAMA_8B_FP8) for rows in (1, 8, 32, 64, 256)),
    *((heads, [n] * rows) for heads in (QWEN_06B, LLAMA_1B) for rows, n in ((1, 128), (1, 32768), (32, 4096))),
    *((heads, [131071]) for heads in (LLAMA_1B, LLAMA_8B)),
    *((heads, MIXED) for heads in (QWEN_06B, LLAMA_1B)),
]  # fmt: skip
PREFILL = [
    (heads, name, spans)
    for heads in (LLAMA_8B, LLAMA_1B)
    for name, spans in (
        ("8192 from 0", [(0, 8192)]),
        ("2048 from 6144", [(6144, 2048)]),
        ("8 x 1024 from 0", [(0, 1024)] * 8),
        ("64 x 128 from 0", [(0, 128)] * 64),
    )
] + [(LLAMA_8B_FP8, "8192 from 0", [(0, 8192)])]


def graph_us(calls: list[Callable[[], None]], *, repeats: int = 1, replays: int = 7) -> float:
    """Median microseconds of one call."""
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    times = []
    for _ in range(replays + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / (repeats * len(calls)))
    return float(median(times[2:]))


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def caches(heads: Heads, lengths: list[int], copies: int) -> list[LayerCache]:
    """Scattered pages for slots of these lengths, in one pool for each of `copies` layers."""
    owned = [-(-length // PAGE) for length in lengths]
    num_pages = 1 + sum(owned)
    order = iter((1 + torch.randperm(num_pages - 1)).tolist())
    tables = torch.zeros(len(lengths) + 1, max(owned), dtype=torch.int32)
    for slot, pages in enumerate(owned):
        tables[slot, :pages] = torch.tensor([next(order) for _ in range(pages)])
    tables = tables.to(DEVICE)
    shape = (num_pages, 2, heads.kv, PAGE, heads.dim)
    scales = (0.03, 0.03) if heads.stored.itemsize == 1 else (1.0, 1.0)
    return [
        LayerCache(torch.randn(shape, device=DEVICE).to(heads.stored), tables, *scales) for _ in range(copies)
    ]


def rotary(heads: Heads, context: int) -> Rotary:
    angles = torch.randn(context, heads.dim, device=DEVICE)
    norm = torch.randn(heads.q + heads.kv, heads.dim, device=DEVICE).bfloat16() if heads.norm else None
    return Rotary(angles.cos(), angles.sin(), norm)


def decode(heads: Heads, lengths: list[int]) -> Row:
    rows = len(lengths)
    kv_bytes = sum(length + 1 for length in lengths) * 2 * heads.kv * heads.dim * heads.stored.itemsize
    layers = caches(
        heads, [length + 1 for length in lengths], max(1, min(28, int(ROTATED_BYTES // kv_bytes)))
    )
    qkv = torch.randn(rows, (heads.q + 2 * heads.kv) * heads.dim, device=DEVICE).bfloat16()
    out = torch.empty(rows, heads.q * heads.dim, device=DEVICE, dtype=torch.bfloat16)
    slots, positions, turn = int32([*range(rows)]), int32(lengths), rotary(heads, max(lengths) + 1)
    attend = DecodeAttention(rows, heads.q, heads.kv, heads.dim, PAGE, DEVICE, stored=heads.stored)
    attend.plan(slots, positions, layers[0].idle)
    repeats = max(1, 20 // len(layers))
    us = graph_us([partial(attend, qkv, slots, positions, turn, x, out) for x in layers], repeats=repeats)
    row = {
        "kernel": "decode",
        "heads": str(heads),
        "case": name_of(lengths),
        "us": us,
        "floor_us": kv_bytes / BYTES_PER_US,
    }
    row["rate"] = kv_bytes / us / 1e6
    if heads.stored.itemsize == 2 and fa3.missing(DEVICE) is None:
        q = qkv[:, : heads.q * heads.dim].view(rows, 1, heads.q, heads.dim)
        used = positions + 1
        row["fa3_us"] = min(
            graph_us([partial(fa3_decode, q, x, used, out, splits) for x in layers], repeats=repeats)
            for splits in ((1, 8, 32) if rows <= 32 else (1,))
        )  # fmt: skip
    return row


def fa3_decode(q: Tensor, layer: LayerCache, used: Tensor, out: Tensor, splits: int) -> None:
    k, v = layer.pool.transpose(2, 3).unbind(1)
    torch.ops.flash_attn_3.fwd(
        q, k, v, out=out.view(q.shape), seqused_k=used, page_table=layer.tables[:-1],
        softmax_scale=q.shape[-1] ** -0.5, is_causal=True, num_splits=splits,
    )  # fmt: skip


def name_of(lengths: list[int]) -> str:
    if len(set(lengths)) == 1:
        return f"{len(lengths)} x {lengths[0]}"
    return f"{len(lengths)} mixed, {min(lengths)} to {max(lengths)}"


def prefill(heads: Heads, name: str, spans: list[tuple[int, int]]) -> Row:
    tokens = sum(length for _, length in spans)
    layer = caches(heads, [start + length for start, length in spans], 1)[0]
    qkv = torch.randn(tokens, (heads.q + 2 * heads.kv) * heads.dim, device=DEVICE).bfloat16()
    out = torch.empty(tokens, heads.q * heads.dim, device=DEVICE, dtype=torch.bfloat16)
    starts, counts = (int32(list(column)) for column in zip(*spans, strict=True))
    chunks = Chunks(int32([*range(len(spans))]), starts, (counts.cumsum(0) - counts).int(), counts)
    operations = (
        4 * heads.dim * heads.q * sum(length * start + length * (length + 1) // 2 for start, length in spans)
    )
    us = graph_us([partial(prefill_attention, qkv, chunks, layer, out)], repeats=2)
    row = {"kernel": "prefill", "heads": str(heads), "case": name, "us": us, "rate": operations / us / 1e6}
    if fa3.missing(DEVICE) is None:
        if heads.stored.itemsize == 2:
            row["fa3_us"] = graph_us([partial(fa3.flash_attention, qkv, chunks, layer, out)], repeats=2)
        if not any(start for start, _ in spans):
            row["fa3_fresh_us"] = graph_us(
                [partial(fa3.flash_attention, qkv, chunks, layer, out, fresh=True)], repeats=2
            )
    return row


def turn_and_write(heads: Heads, tokens: int) -> Row:
    layer = caches(heads, [tokens], 1)[0]
    qkvs = [
        torch.randn(tokens, (heads.q + 2 * heads.kv) * heads.dim, device=DEVICE).bfloat16() for _ in range(8)
    ]
    slots, positions, turn = int32([0] * tokens), int32([*range(tokens)]), rotary(heads, tokens)
    us = graph_us([partial(rope_write, x, slots, positions, turn, layer) for x in qkvs], repeats=3)
    moved = tokens * heads.dim * 2 * (2 * heads.q + 4 * heads.kv)
    floor = moved / BYTES_PER_US
    return {
        "kernel": "rope_write",
        "heads": str(heads),
        "case": f"{tokens} tokens",
        "us": us,
        "floor_us": floor,
        "rate": moved / us / 1e6,
    }


def rows(kernels: list[str]) -> Iterator[Row]:
    if "decode" in kernels:
        yield from (decode(*case) for case in DECODE)
    if "prefill" in kernels:
        yield from (prefill(*case) for case in PREFILL)
    if "rope_write" in kernels:
        yield from (
            turn_and_write(heads, tokens) for heads in (QWEN_06B, LLAMA_8B) for tokens in (1, 64, 512, 8192)
        )


def line(row: Row) -> str:
    unit = "TFLOP/s" if row["kernel"] == "prefill" else "TB/s"
    rest = "".join(f"  {key} {row[key]:.1f}" for key in ("floor_us", "fa3_us", "fa3_fresh_us") if key in row)
    rate = f"{row['rate']:.0f}" if unit == "TFLOP/s" else f"{row['rate']:.2f}"
    return f"{row['kernel']:<10} {row['heads']:<14} {row['case']:<24} {row['us']:>8.1f} us {rate:>5} {unit}{rest}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["decode", "prefill", "rope_write"]
    parser.add_argument("--kernels", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    done = []
    for row in rows(options.kernels):
        done.append(row)
        sys.stdout.write(line(row) + "\n")
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
