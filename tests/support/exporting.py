"""Exports of tiny checkpoints in a test's directory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoints import write_checkpoint

from jitney.export.engine_directory import export_engine
from jitney.export.open import open_source
from jitney.export.options import ExportOptions
from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.weights.manifest import Manifest

PROMPTS: list[Any] = [[5, 9, 40, 2], [1, 60, 61, 62, 63, 7], [33]]


def silent(stage: str, done: int, total: int) -> None:
    """A report that goes nowhere."""


def exported(source: Path, target: Path, **options: Any) -> Manifest:
    return export_engine(open_source(source), target, ExportOptions(source=source.name, **options), silent)


def tiny_engine(
    directory: Path, family: str = "Llama", shape: dict[str, Any] | None = None, **options: Any
) -> Path:
    """`directory/engine`, made of `directory/source`."""
    exported(write_checkpoint(directory / "source", family, **(shape or {})), directory / "engine", **options)
    return directory / "engine"


def greedy(model: Path, **config: Any) -> list[list[int]]:
    """What an engine answers to three prompts, 16 tokens each."""

    async def answers() -> list[list[int]]:
        settings = EngineConfig(device="cpu", max_rows=4, kv_cache_bytes=2**22, tune_process=False, **config)
        async with DynamicEngine(model, settings) as engine:
            params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
            return [answer["tokens"] for answer in await engine.generate(PROMPTS, params)]

    return asyncio.run(answers())


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}
