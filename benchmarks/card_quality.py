"""What eight bits change on an NVIDIA card: the default model's next-token distributions against bfloat16's.

    python benchmarks/card_quality.py TEXT [TEXT ...] [--positions 4096] [--engine DIRECTORY ...]

TEXT are files of prose; they are read one after the other, cut into prompts of 1,024 tokens, and computed in chunks of
128, so that all but the first chunk attend to keys from the pages. Prints the mean and the largest KL divergence in
nats, and how often the likeliest token is the same; of weights narrowed as they are loaded, or of engine directories.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jitney.runtime.batch import Batch, Chunk, RowSampling, Seat
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.engines.abstract import resolve
from jitney.runtime.weights.default_model import NAMES

PROMPT, CHUNK = 1024, 128
SCORED = RowSampling(seed=0, temperature=0.0, prompt_logprobs=0)
WAYS = ({"quantize": "fp8"}, {"kv_dtype": "fp8"}, {"quantize": "fp8", "kv_dtype": "fp8"})


def logits(name: str, text: str, positions: int, **settings: Any) -> Tensor:
    """Of the next token after each position: [positions, vocabulary], on the card."""
    model = resolve(name)
    config = EngineConfig(device="cuda", max_rows=2, max_context=2 * PROMPT, **settings)
    step = model.open_step(config)
    assert isinstance(step, CudaStep)
    scorer, found = step._forward._sampler.scorer, []
    score = scorer.score

    def caught(values: Tensor, *others: Tensor, prompt: bool = False) -> Any:
        if prompt:
            found.append(values.float())
        return score(values, *others, prompt=prompt)

    scorer.score = caught  # type: ignore[method-assign]  # the only place that sees a prompt's logits
    tokens = model.tokenizer.encode(text)[:positions]
    pages = tuple(range(1, 2 + PROMPT // step.capacity.page_size))
    for at in range(0, len(tokens), PROMPT):
        prompt = tuple(tokens[at : at + PROMPT])
        seats: tuple[Seat, ...] = (Seat(0, prompt, len(prompt), PROMPT + 1, 0, pages, SCORED),)
        for start in range(0, len(prompt), CHUNK):
            count = min(CHUNK, len(prompt) - start)
            chunk = Chunk(0, start, count, start + count == len(prompt))
            step.collect(step.launch(Batch(1, seats, (), (chunk,), ())))
            seats = ()
    step.close()
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--engine", nargs="+", default=[], metavar="DIRECTORY", help="in place of loading")
    asked = parser.parse_args()
    text = "\n".join(path.read_text() for path in asked.texts)
    source = logits(NAMES[0], text, asked.positions).log_softmax(-1)
    ways = [(engine, {}) for engine in asked.engine] or [(NAMES[0], way) for way in WAYS]
    for name, way in ways:
        narrowed = logits(name, text, asked.positions, **way).log_softmax(-1)
        divergence = (source.exp() * (source - narrowed)).sum(-1)
        same = (source.argmax(-1) == narrowed.argmax(-1)).float().mean()
        print(
            f"{way or name}: {len(divergence)} positions, mean KL {divergence.mean():.4f}, largest"
            f" {divergence.max():.2f}, same likeliest token {100 * same:.1f} %", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
