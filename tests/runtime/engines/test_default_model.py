"""The default model against transformers on the same weights: float32, greedy, 64 tokens, twenty prompts at once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.errors import ModelError
from jitney.runtime.weights.default_model import default_model

PROMPTS = [
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a haiku about rain.",
    "Name three primary colours.",
    "Explain what a neuron is to a child.",
    "What is 17 plus 25?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "List the days of the week.",
    "What does a compiler do?",
    "Give me a recipe for pancakes.",
    "How far is the Moon from the Earth?",
    "What is the opposite of hot?",
    "Tell me a short story about a fox.",
    "What is photosynthesis?",
    "Write a function that adds two numbers in Python.",
    "Why do cats purr?",
    "What year did the Second World War end?",
    "Summarise the water cycle in one sentence.",
    "日本の首都はどこですか。 🎌",
]


@pytest.mark.timeout(900)
async def test_twenty_prompts_equal_transformers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    try:
        directory = default_model()
    except ModelError as error:
        pytest.skip(str(error))
    config = EngineConfig(dtype="float32", max_context=512)
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    async with DynamicEngine("smollm2-135m", config) as engine:
        answers = await engine.generate(chats, SamplingParams(temperature=0, max_tokens=64))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens, start = answer["tokens"], len(answer["prompt_token_ids"])
        assert len(tokens) == 64 or answer["finish_reason"] == "stop_token"
        with torch.inference_mode():
            best = model(torch.tensor([answer["prompt_token_ids"] + tokens])).logits[0].argmax(-1).tolist()
        assert tokens == best[start - 1 : -1], prompt
