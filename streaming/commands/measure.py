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
from importlib import import_module
from importlib.metadata import version
from typing import Any

from ...runtime.config import EngineConfig
from ...runtime.errors import JitneyError
from ...runtime.params import SamplingParams
from .benches.device import kind_of
from .benches.process import answer
from .benches.report import device_name
from .workload import EngineName, Job, Measured

WARM_UP_TOKENS = 8
MOST_TIMED_APART = 64
"""Requests of a list whose first tokens are also timed."""

Run = Callable[[list[list[int]], list[int]], list[int]]
"""Prompts, and how many tokens each answer has; gives how many each got. Past any end id."""


def measure(job: Job) -> Measured:
    """Raises `JitneyError` where the model cannot be loaded, or an answer has not the length that was asked for."""
    begun = time.monotonic()
    with LOADERS[job.engine](job) as (run, vocab_size):
        prompts, lengths = job.prompts(vocab_size), job.output_lengths()
        run(prompts[: job.batch], [WARM_UP_TOKENS] * len(prompts[: job.batch]))
        load_s = time.monotonic() - begun
        if job.requests is not None:
            run(prompts, lengths)
        seconds = [_timed(run, prompts, lengths) for _ in range(job.repeats)]
        is_apart = len(set(lengths)) == 1 and lengths[0] > 1 and len(lengths) <= MOST_TIMED_APART
        first_s = [_timed(run, prompts, [1] * len(lengths)) for _ in range(job.repeats * is_apart)]
    return Measured(
        engine=job.engine,
        quantize=job.settings.get("quantize"),
        seconds=seconds,
        num_tokens=sum(lengths),
        num_prompt_tokens=sum(map(len, prompts)),
        output_len=lengths[0] if is_apart else None,
        first_s=first_s,
        load_s=load_s,
        device=device_name(kind_of(job.settings.get("device", "auto"))),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "vllm") if name in sys.modules},
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
                return _counts(runner.run(engine.generate(prompts, _params(job, lengths))))

            yield run, engine.backend.vocab_size
        finally:
            runner.run(engine.close())


@contextmanager
def _static(job: Job) -> Iterator[tuple[Run, int]]:
    from ...runtime import StaticEngine

    with StaticEngine(job.model, _config(job), legacy=True) as engine:

        def run(prompts: list[list[int]], lengths: list[int]) -> list[int]:
            return _counts(engine.generate(prompts, _params(job, lengths)))

        yield run, engine.backend.vocab_size


@contextmanager
def _transformers(job: Job) -> Iterator[tuple[Run, int]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    threads = job.settings.get("num_threads")
    if threads is not None:
        torch.set_num_threads(threads)
    named, directory = job.settings.get("dtype", "auto"), _directory(job.model)
    dtype = named if named == "auto" else getattr(torch, named)
    device = "cuda" if torch.cuda.is_available() and job.settings.get("device") != "cpu" else "cpu"
    if job.settings.get("load_format") == "random":
        model = loader.from_config(AutoConfig.from_pretrained(directory), dtype=dtype)
    else:
        model = loader.from_pretrained(directory, dtype=dtype)
    model.to(device).eval()

    def run_batch(prompts: list[list[int]], lengths: list[int]) -> list[int]:
        longest = max(len(prompt) for prompt in prompts)
        padding = [longest - len(prompt) for prompt in prompts]
        output = model.generate(
            input_ids=torch.tensor(
                [[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)], device=device
            ),
            attention_mask=torch.tensor(
                [[0] * pad + [1] * (longest - pad) for pad in padding], device=device
            ),
            min_new_tokens=max(lengths),
            max_new_tokens=max(lengths),
            do_sample=job.temperature > 0,
            **({"temperature": job.temperature, "top_k": 0, "top_p": 1.0} if job.temperature else {}),
            pad_token_id=0,
        )
        return [min(output.shape[1] - longest, length) for length in lengths]

    def run(prompts: list[list[int]], lengths: list[int]) -> list[int]:
        starts = range(0, len(prompts), job.batch)
        batches = (slice(start, start + job.batch) for start in starts)
        return [count for batch in batches for count in run_batch(prompts[batch], lengths[batch])]

    yield run, model.config.vocab_size


@contextmanager
def _vllm(job: Job) -> Iterator[tuple[Run, int]]:
    """Its defaults but for the prefix cache, which would answer a repeat from memory."""
    vllm: Any = import_module("vllm")
    longest = max(
        len(prompt) + out for prompt, out in zip(job.prompts(1000), job.output_lengths(), strict=True)
    )
    settings = {
        "load_format": "dummy" if job.settings.get("load_format") == "random" else "auto",
        "dtype": job.settings.get("dtype", "auto"),
        "quantization": job.settings.get("quantize"),
        "kv_cache_dtype": job.settings.get("kv_dtype", "auto"),
    }
    model = vllm.LLM(
        model=_directory(job.model), skip_tokenizer_init=True, max_model_len=longest + WARM_UP_TOKENS,
        gpu_memory_utilization=0.9, enable_prefix_caching=False, disable_log_stats=True,
        max_num_seqs=job.batch, **settings,
    )  # fmt: skip

    def run(prompts: list[list[int]], lengths: list[int]) -> list[int]:
        params = [
            vllm.SamplingParams(
                temperature=job.temperature, ignore_eos=True, max_tokens=length, detokenize=False
            )
            for length in lengths
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [len(made.outputs[0].token_ids) for made in model.generate(asked, params, use_tqdm=False)]

    yield run, model.llm_engine.model_config.get_vocab_size()


LOADERS: dict[EngineName, Callable[[Job], AbstractContextManager[tuple[Run, int]]]] = {
    "dynamic": _dynamic,
    "static": _static,
    "transformers": _transformers,
    "vllm": _vllm,
}


def _config(job: Job) -> EngineConfig:
    return EngineConfig(**job.settings, max_rows=job.batch, prefix_cache=False)


def _params(job: Job, lengths: list[int]) -> list[SamplingParams]:
    return [
        SamplingParams(
            temperature=job.temperature, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, max_tokens=length,
            ignore_eos=True,
        )
        for length in lengths
    ]  # fmt: skip


def _counts(answers: list[dict[str, Any]]) -> list[int]:
    for given in answers:
        if given["error"] is not None:
            raise JitneyError(given["error"])
    return [len(given["tokens"]) for given in answers]


def _directory(model: str) -> str:
    """Where transformers finds the model: the default one lies converted in the cache."""
    from ...runtime.weights import default_model

    return str(default_model.default_model()) if model.lower() in default_model.NAMES else model


if __name__ == "__main__":
    answer(Job, measure, lambda job: job.engine)
