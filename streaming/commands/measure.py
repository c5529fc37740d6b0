"""One engine measured in a process of its own, so that memory, threads and caches are its own.

Reads a `Job` as JSON from standard input and writes a `Measured` to standard output. Every engine is loaded and warmed
up before the clock starts.
"""

from __future__ import annotations

import asyncio
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from typing import Any

import msgspec

from ...runtime.config import EngineConfig
from ...runtime.errors import JitneyError
from ...runtime.params import SamplingParams
from .workload import EngineName, Job, Measured

WARM_UP_TOKENS = 8

Run = Callable[[list[list[int]], list[int]], list[int]]
"""Prompts, and how many tokens each answer has; gives how many each got. Greedy, past any end id."""


def measure(job: Job) -> Measured:
    """Raises `JitneyError` where the model cannot be loaded, or an answer has not the length that was asked for."""
    begun = time.monotonic()
    with LOADERS[job.engine](job) as (run, vocab_size):
        prompts, lengths = job.prompts(vocab_size), job.output_lengths()
        run(prompts[: job.batch], [WARM_UP_TOKENS] * len(prompts[: job.batch]))
        load_s = time.monotonic() - begun
        seconds = [_timed(run, prompts, lengths) for _ in range(job.repeats)]
    return Measured(
        engine=job.engine,
        quantize=job.quantize,
        seconds=seconds,
        num_tokens=sum(lengths),
        load_s=load_s,
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers") if name in sys.modules},
    )


def _timed(run: Run, prompts: list[list[int]], lengths: list[int]) -> float:
    begun = time.monotonic()
    counts = run(prompts, lengths)
    seconds = time.monotonic() - begun
    if counts != lengths:
        raise JitneyError(f"expected answers of {lengths} tokens, got {counts}")
    return seconds


@contextmanager
def _dynamic(job: Job) -> Iterator[tuple[Run, int]]:
    from ...runtime import DynamicEngine

    engine = DynamicEngine(job.model, _config(job))
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:

            def run(prompts: list[list[int]], lengths: list[int]) -> list[int]:
                return _counts(runner.run(engine.generate(prompts, _params(lengths))))

            yield run, engine.backend.vocab_size
        finally:
            runner.run(engine.close())


@contextmanager
def _static(job: Job) -> Iterator[tuple[Run, int]]:
    from ...runtime import StaticEngine

    with StaticEngine(job.model, _config(job), legacy=True) as engine:

        def run(prompts: list[list[int]], lengths: list[int]) -> list[int]:
            return _counts(engine.generate(prompts, _params(lengths)))

        yield run, engine.backend.vocab_size


@contextmanager
def _transformers(job: Job) -> Iterator[tuple[Run, int]]:
    import torch
    from transformers import AutoModelForCausalLM

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    dtype = job.dtype if job.dtype == "auto" else getattr(torch, job.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(_directory(job.model), dtype=dtype)

    def run_batch(prompts: list[list[int]], lengths: list[int]) -> list[int]:
        longest = max(len(prompt) for prompt in prompts)
        padding = [longest - len(prompt) for prompt in prompts]
        output = model.generate(
            input_ids=torch.tensor(
                [[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]
            ),
            attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding]),
            min_new_tokens=max(lengths),
            max_new_tokens=max(lengths),
            do_sample=False,
            pad_token_id=0,
        )
        return [min(output.shape[1] - longest, length) for length in lengths]

    def run(prompts: list[list[int]], lengths: list[int]) -> list[int]:
        starts = range(0, len(prompts), job.batch)
        batches = (slice(start, start + job.batch) for start in starts)
        return [count for batch in batches for count in run_batch(prompts[batch], lengths[batch])]

    yield run, model.config.vocab_size


LOADERS: dict[EngineName, Callable[[Job], AbstractContextManager[tuple[Run, int]]]] = {
    "dynamic": _dynamic,
    "static": _static,
    "transformers": _transformers,
}


def _config(job: Job) -> EngineConfig:
    return EngineConfig(
        dtype=job.dtype,
        quantize=job.quantize,
        max_rows=job.batch,
        num_threads=job.threads,
        prefix_cache=False,
    )


def _params(lengths: list[int]) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=0.0, repetition_penalty=1.0, max_tokens=length, ignore_eos=True)
        for length in lengths
    ]


def _counts(answers: list[dict[str, Any]]) -> list[int]:
    for answer in answers:
        if answer["error"] is not None:
            raise JitneyError(answer["error"])
    return [len(answer["tokens"]) for answer in answers]


def _directory(model: str) -> str:
    """Where transformers finds the model: the default one lies converted in the cache."""
    from ...runtime.weights import default_model

    return str(default_model.default_model()) if model.lower() in default_model.NAMES else model


def main() -> None:
    """Measure the job on standard input. One line on standard error and status 1 where it cannot run."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        measured = measure(job)
    except (JitneyError, OSError, ValueError) as error:
        sys.exit(f"{job.engine}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(measured))


if __name__ == "__main__":
    main()
