"""What a benchmark runs: a list of prompt and answer lengths, and the tokens that fill it, all from one seed."""

from __future__ import annotations

import random
import re
from typing import Any, Literal

import msgspec
import typer

from .benches.lists import LISTS, drawn

EngineName = Literal["dynamic", "static", "transformers", "vllm"]


class Lengths(msgspec.Struct, frozen=True):
    """Tokens, drawn uniformly from [low, high]."""

    low: int
    high: int

    def draw(self, count: int, random: random.Random) -> list[int]:
        return [random.randint(self.low, self.high) for _ in range(count)]

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def lengths(text: str | Lengths) -> Lengths:
    """`128`, or `32-256` for mixed lengths."""
    if isinstance(text, Lengths):
        return text
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise typer.BadParameter(f"expected a length such as 128, or a range such as 32-256, got {text!r}")
    return Lengths(low, high)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: this list of requests, all at once, on this engine, `repeats` times."""

    engine: EngineName
    model: str
    num_requests: int
    input: Lengths
    output: Lengths
    batch: int
    """Rows that decode together."""
    repeats: int
    seed: int
    requests: str | None = None
    """A fixed list by name, in place of what would be drawn."""
    settings: dict[str, Any] = {}
    """Of `EngineConfig`."""

    @property
    def temperature(self) -> float:
        """Fixed lists are sampled, as they are elsewhere."""
        return 0.0 if self.requests is None else 0.6

    def output_lengths(self) -> list[int]:
        """Tokens of each answer: the same for every engine."""
        if self.requests is not None:
            return [output for _, output in LISTS[self.requests]]
        return self.output.draw(self.num_requests, random.Random(self.seed))

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Random token ids: the same for every engine that agrees on the size of the vocabulary."""
        if self.requests is not None:
            return drawn(LISTS[self.requests], vocab_size)
        draw = random.Random(self.seed + 1)
        return [
            [draw.randrange(vocab_size) for _ in range(n)] for n in self.input.draw(self.num_requests, draw)
        ]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each repeat. `num_tokens` is what a repeat was asked to generate. `first_s`: of each repeat of the
    same prompts with answers of one token, where all answers are equally long; the rest is then the steady state."""

    engine: EngineName
    quantize: Literal["int8", "fp8"] | None
    seconds: list[float]
    num_tokens: int
    num_prompt_tokens: int
    output_len: int | None = None
    first_s: list[float] = []
    load_s: float
    device: str
    versions: dict[str, str]
