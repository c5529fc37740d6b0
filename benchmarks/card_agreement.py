"""How far `fast` mode is from itself on an NVIDIA card: tokens and logits of the same prompts, computed in other ways.

    python benchmarks/card_agreement.py [--model smollm2-135m] [--prompts 200] [--text export/text.txt]

The reference is `fast` by graphs, all prompts at once. Against it: launch by launch, each prompt alone, in small chunks
with so few pages that rows are preempted, from a cached prefix, and in `deterministic` mode. Prompts are pieces of real
text of 8 to 256 tokens; odd ones are greedy, even ones sample with a seed; answers have 32 tokens. A token is compared
while all before it are equal: `same` is the share that is equal then, `whole` counts the answers that are equal to
their end.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from jitney.runtime.backend import Backend
from jitney.runtime.batch import RowSampling
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.engines.abstract import resolve
from jitney.runtime.messages import Generate, Output
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.worker import StepLoop

ANSWER = 32
SETTINGS: dict[str, Any] = {"device": "cuda", "mode": "fast", "max_rows": 64, "max_context": 1024}
Prompts = Sequence[tuple[int, ...]]


class Watched:
    """A step, and the logits of every token that it samples, by the row's seed and the token's position."""

    def __init__(self, step: CudaStep) -> None:
        self.step, self._run = step, step._run
        self._seen: list[tuple[list[int], Tensor, Tensor]] = []
        step._run = self._watched  # type: ignore[method-assign]  # the only place that knows rows and logits

    def _watched(self, *args: Any) -> Any:
        part, forward = self._run(*args), self.step._forward
        rows = [row for row, _ in part.rows]
        seeds = [self.step._seats[slot].sampling.seed for _, slot in part.rows]
        positions = forward._gathered.draw_positions
        logits = forward._ops._buffers["logits"]  # type: ignore[attr-defined]  # on a card they are KernelOps
        self._seen.append((seeds, positions[rows], logits[rows]))
        return part

    def logits(self) -> dict[tuple[int, int], Tensor]:
        return {
            (seed, position): row
            for seeds, positions, rows in self._seen
            for seed, position, row in zip(seeds, positions.tolist(), rows, strict=True)
        }


def answers(step: CudaStep, prompts: Prompts, *, together: bool, rounds: int) -> list[list[int]]:
    """The tokens of the last round."""
    loop = StepLoop(step, Scheduler(step.capacity))
    found: list[list[int]] = []
    for _ in range(rounds):
        found = [[] for _ in prompts]
        for i, prompt in enumerate(prompts):
            sampling = RowSampling(seed=i, temperature=0.0 if i % 2 else 0.8, top_p=0.9 if i % 3 else 1.0)
            loop.obey(
                Generate(id=str(i), prompt=prompt, sampling=sampling, max_tokens=ANSWER, arrival=float(i))
            )
            if not together or i == len(prompts) - 1:
                drain(loop, found)
    return found


def drain(loop: StepLoop, found: list[list[int]]) -> None:
    while not loop.is_idle:
        for output in loop.turn(0.0) or ():
            if isinstance(output, Output):
                assert output.error is None, output.error
                found[int(output.id)] += output.tokens
            else:
                for (name, _), token in zip(output.names, output.tokens, strict=True):
                    found[int(name)].append(token)


def computed(
    open_step: Callable[[EngineConfig], CudaStep],
    prompts: Prompts,
    *,
    together: bool = True,
    graphs: bool = True,
    rounds: int = 1,
    **settings: Any,
) -> tuple[list[list[int]], dict[tuple[int, int], Tensor]]:
    watched = Watched(open_step(EngineConfig(**(SETTINGS | settings))))
    if not graphs:
        watched.step._graphs.clear()
    found = answers(watched.step, prompts, together=together, rounds=rounds)
    logits = watched.logits()
    watched.step.close()
    return found, logits


def report(name: str, prompts: Prompts, mine: Any, reference: Any) -> None:
    same, compared, whole, worst, spread = 0, 0, 0, 0.0, 0.0
    for i, prompt in enumerate(prompts):
        pairs = list(zip(mine[0][i], reference[0][i], strict=True))
        whole += all(a == b for a, b in pairs)
        for at, (a, b) in enumerate(pairs):
            place = (i, len(prompt) + at)
            here, there = mine[1][place].float(), reference[1][place].float()
            worst = max(worst, float((here - there).abs().max()))
            spread = max(spread, float(there.max() - there.min()))
            compared += 1
            if a != b:
                break
            same += 1
    print(
        f"{name}: same {100 * same / compared:.2f} % of {compared}, whole {whole} of {len(prompts)},"
        f" logits differ by at most {worst:.3f} (they span {spread:.0f})", flush=True,
    )  # fmt: skip


def pieces(model: Backend, text: str, count: int) -> list[tuple[int, ...]]:
    tokens, draw = model.tokenizer.encode(text), random.Random(4)
    lengths = [draw.randint(8, 256) for _ in range(count)]
    starts = [draw.randrange(len(tokens) - length) for length in lengths]
    return [tuple(tokens[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--text", type=Path, default=Path("export/text.txt"))
    asked = parser.parse_args()
    model = resolve(asked.model)
    prompts = pieces(model, asked.text.read_text(), asked.prompts)
    open_step: Any = model.open_step
    reference = computed(open_step, prompts)
    report("the same again", prompts, computed(open_step, prompts), reference)
    report("launch by launch", prompts, computed(open_step, prompts, graphs=False), reference)
    report("alone", prompts, computed(open_step, prompts, together=False), reference)
    crowded = computed(open_step, prompts, max_batch_tokens=192, kv_cache_bytes=64 << 20)
    report("small chunks, few pages", prompts, crowded, reference)
    report("cached prefix", prompts, computed(open_step, prompts, rounds=2), reference)
    report("deterministic", prompts, computed(open_step, prompts, mode="deterministic"), reference)


if __name__ == "__main__":
    main()
