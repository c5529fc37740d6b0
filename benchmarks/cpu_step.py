"""The CPU step alone, with random weights of SmolLM2-135M's shape: no engine, no tokenizer, no checkpoint.

    python benchmarks/cpu_step.py [--steps 60] [--modes bf16 int8] [--batches 1 8 32] [--threads 2]

Prints prefill tokens/s (prompts of 128 in chunks of 512), ms for one decode step around a context of 192 (median, 10th
and 90th percentile), and the batch-1 step beside a Python thread or another process that never rests.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
import torch
from torch import Tensor

from jitney.runtime.batch import Batch, Chunk, RowSampling, Seat, Step
from jitney.runtime.config import EngineConfig
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.steps.cpu import open_cpu_step

SMOLLM2 = ModelConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position=8192,
    rope_theta=100000.0,
    tied_embeddings=True,
)
MODES = {
    "bf16": EngineConfig(max_context=1024),
    "int8": EngineConfig(max_context=1024, quantize="int8"),
    "fp32": EngineConfig(max_context=1024, dtype="float32"),
}
PROMPT = 128
PAGES = 12


class RandomWeights:
    """A checkpoint of noise: each tensor is made when it is read."""

    def __init__(self, model: ModelConfig) -> None:
        hidden, inner = model.hidden_size, model.intermediate_size
        q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        self.shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (model.vocab_size, hidden),
            "model.norm.weight": (hidden,),
        }
        for i in range(model.num_layers):
            layer = f"model.layers.{i}."
            self.shapes |= {layer + f"{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
            self.shapes |= {layer + f"mlp.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")}
            self.shapes |= {layer + f"self_attn.{n}_proj.weight": (kv, hidden) for n in "kv"}
            self.shapes[layer + "self_attn.q_proj.weight"] = (q, hidden)
            self.shapes[layer + "self_attn.o_proj.weight"] = (hidden, q)
            self.shapes[layer + "mlp.down_proj.weight"] = (hidden, inner)

    def names(self) -> Iterable[str]:
        return self.shapes

    def get(self, name: str) -> Tensor:
        return torch.randn(self.shapes[name], dtype=torch.bfloat16) * 0.05 + (1.0 if "norm" in name else 0.0)


def prefill(step: Step, rows: int) -> float:
    """Seat and compute `rows` prompts; tokens per second."""
    started = time.perf_counter()
    for first in range(0, rows, 4):
        seats = [seat(slot) for slot in range(first, min(first + 4, rows))]
        chunks = [Chunk(s.slot, 0, PROMPT, True) for s in seats]
        step.collect(step.launch(Batch(0, tuple(seats), (), tuple(chunks), ())))
    return rows * PROMPT / (time.perf_counter() - started)


def seat(slot: int) -> Seat:
    tokens = tuple((slot * 997 + i * 31) % SMOLLM2.vocab_size for i in range(PROMPT))
    pages = tuple(range(1 + slot * PAGES, 1 + (slot + 1) * PAGES))
    return Seat(slot, tokens, PROMPT, PAGES * 32, 0, pages, RowSampling(seed=slot, temperature=0.0))


def decode(step: Step, rows: int, steps: int) -> list[float]:
    """Milliseconds of each step, sorted."""
    taken = []
    batch = Batch(0, (), (), (), tuple(range(rows)))
    for _ in range(steps):
        started = time.perf_counter()
        step.collect(step.launch(batch))
        taken.append((time.perf_counter() - started) * 1e3)
    return sorted(taken)


def spread(taken: list[float]) -> str:
    tenth = len(taken) // 10
    return f"{taken[len(taken) // 2]:7.1f} ms  ({taken[tenth]:.1f} to {taken[-1 - tenth]:.1f})"


@contextmanager
def busy_thread(switch_interval_s: float) -> Iterator[None]:
    """A thread of pure Python that wants the interpreter all the time."""
    before, stop = sys.getswitchinterval(), threading.Event()

    def spin() -> None:
        count = 0
        while not stop.is_set():
            count += 1

    thread = threading.Thread(target=spin)
    sys.setswitchinterval(switch_interval_s)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that wants a core all the time."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def measure(mode: str, batches: list[int], steps: int, threads: int | None) -> list[str]:
    config = msgspec.structs.replace(MODES[mode], num_threads=threads)
    step = open_cpu_step(SMOLLM2, RandomWeights(SMOLLM2), config)
    lines = [f"{mode}: {torch.get_num_threads()} threads"]
    for rows in batches:
        prefill(step, rows)
        speed = prefill(step, rows)
        decode(step, rows, 5)
        taken = decode(step, rows, steps)
        rate = rows / taken[len(taken) // 2] * 1e3
        lines.append(
            f"  batch {rows:3}  decode {spread(taken)}  {rate:6.0f} tok/s   prefill {speed:6.0f} tok/s"
        )
    prefill(step, 1)
    lines.append(f"  batch   1 alone                      {spread(decode(step, 1, steps))}")
    for interval_s in (50e-6, 5e-3):
        prefill(step, 1)
        with busy_thread(interval_s):
            taken = decode(step, 1, steps)
        lines.append(f"  beside a busy thread, switch {interval_s * 1e3:4.2f} ms {spread(taken)}")
    prefill(step, 1)
    with busy_process():
        lines.append(f"  beside a busy process                {spread(decode(step, 1, steps))}")
    step.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["bf16", "int8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", type=int, help="default: one core is kept for an event loop")
    arguments = parser.parse_args()
    sys.stdout.write(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}\n")
    for mode in arguments.modes:
        sys.stdout.write(
            "\n".join(measure(mode, arguments.batches, arguments.steps, arguments.threads)) + "\n"
        )


if __name__ == "__main__":
    main()
