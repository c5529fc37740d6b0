"""One engine measured in a process of its own, so that memory, threads and caches are its own.

Reads a `Job` as JSON from standard input and writes a `Measured` to standard output. Every engine is loaded and warmed
up before the clock starts.
"""

from __future__ import annotations

import asyncio
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import msgspec

from ...runtime.config import EngineConfig
from ...runtime.errors import JitneyError
from ...runtime.params import SamplingParams
from .workload import Job, Measured

WARM_UP_TOKENS = 8


def measure(job: Job) -> Measured:
    """Raises `JitneyError` where the model cannot be loaded."""
    run = {"dynamic": _dynamic, "static": _static, "transformers": _transformers}[job.engine]
    started = time.monotonic()
    seconds, load_s = run(job, started)
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "transformers") if name in sys.modules}
    num_tokens = sum(output for _, output in job.sizes())
    return Measured(
        engine=job.engine,
        quantize=job.quantize,
        seconds=seconds,
        num_tokens=num_tokens,
        load_s=load_s,
        versions=versions,
    )


def _params(job: Job) -> list[SamplingParams]:
    return [_exactly(output) for _, output in job.sizes()]


def _exactly(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, repetition_penalty=1.0)


def _config(job: Job) -> EngineConfig:
    return EngineConfig(
        dtype=job.dtype,
        quantize=job.quantize,
        max_rows=job.batch,
        num_threads=job.threads,
        prefix_cache=False,
        max_queued=max(1024, job.num_requests),
    )


def _dynamic(job: Job, started: float) -> tuple[list[float], float]:
    from ...runtime import DynamicEngine

    async def run() -> tuple[list[float], float]:
        async with DynamicEngine(job.model, _config(job)) as engine:
            prompts = job.prompts(engine.backend.vocab_size)
            await engine.generate(prompts[: job.batch], _exactly(WARM_UP_TOKENS))
            loaded = time.monotonic()
            seconds = []
            for _ in range(job.repeats):
                begun = time.monotonic()
                answers = await engine.generate(prompts, _params(job))
                seconds.append(time.monotonic() - begun)
                _check(job, [len(answer["tokens"]) for answer in answers])
            return seconds, loaded - started

    return asyncio.run(run())


def _static(job: Job, started: float) -> tuple[list[float], float]:
    from ...runtime import StaticEngine
    from ...runtime.weights.locate import open_backend

    prompts = job.prompts(open_backend(job.model).vocab_size)
    with StaticEngine(job.model, _config(job), legacy=True) as engine:

        def run(chosen: list[list[int]], params: list[SamplingParams]) -> list[int]:
            return [len(answer["tokens"]) for answer in engine.generate(chosen, params)]

        return _in_batches(job, started, prompts, run)


def _transformers(job: Job, started: float) -> tuple[list[float], float]:
    import torch
    from transformers import AutoModelForCausalLM

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    dtype = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}[job.dtype]
    loaded: Any = AutoModelForCausalLM.from_pretrained(_directory(job.model), dtype=dtype)
    model = loaded.eval()
    prompts = job.prompts(model.config.vocab_size)

    def run(chosen: list[list[int]], params: list[SamplingParams]) -> list[int]:
        longest = max(len(prompt) for prompt in chosen)
        steps = max(p.max_tokens or 0 for p in params)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in chosen])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in chosen])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=steps,
                min_new_tokens=steps,
                do_sample=False,
                pad_token_id=0,
            )
        return [min(out.shape[1] - longest, p.max_tokens or 0) for p in params]

    return _in_batches(job, started, prompts, run)


def _directory(model: str) -> str:
    from ...runtime.weights import default_model

    return str(default_model.default_model()) if model.lower() in default_model.NAMES else model


def _in_batches(
    job: Job,
    started: float,
    prompts: list[list[int]],
    run: Callable[[list[list[int]], list[SamplingParams]], list[int]],
) -> tuple[list[float], float]:
    """Static batching: `batch` requests at a time, in their order, each batch as long as its longest answer."""
    params = _params(job)
    size = job.batch
    run(prompts[:size], [_exactly(WARM_UP_TOKENS)] * len(prompts[:size]))
    loaded = time.monotonic()
    seconds = []
    for _ in range(job.repeats):
        begun = time.monotonic()
        counts: list[int] = []
        for at in range(0, len(prompts), size):
            counts += run(prompts[at : at + size], params[at : at + size])
        seconds.append(time.monotonic() - begun)
        _check(job, counts)
    return seconds, loaded - started


def _check(job: Job, counts: list[int]) -> None:
    expected = [output for _, output in job.sizes()]
    if counts != expected:
        raise JitneyError(f"{job.engine}: expected answers of {expected} tokens, got {counts}")


def main() -> None:
    """Measure the job on standard input. Status 2 and one line on standard error where it cannot run."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        measured = measure(job)
    except (JitneyError, OSError, ValueError) as error:
        sys.exit(f"{job.engine}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(measured))


if __name__ == "__main__":
    main()
