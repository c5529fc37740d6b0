"""A model's log-probabilities over its whole vocabulary, from the step that serves."""

from __future__ import annotations

import torch
from step_driver import Driver, Row

from jitney.runtime import EngineConfig
from jitney.runtime.batch import RowSampling
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.steps.cpu import open_cpu_step
from jitney.runtime.weights.source import Weights

CONFIG = EngineConfig(dtype="float32", max_rows=4, kv_cache_bytes=2**22)


def logprobs(config: ModelConfig, weights: Weights, tokens: list[int]) -> torch.Tensor:
    """Of every token after each but the last one [tokens - 1, vocabulary]."""
    size = config.vocab_size
    step = open_cpu_step(config, weights, CONFIG)
    row = Row(tokens, RowSampling(seed=0, temperature=0.0, prompt_logprobs=size, logprobs=size))
    Driver(step).generate([row], 1)
    step.close()
    found = torch.zeros(len(tokens) - 1, size)
    for position, scores in enumerate(row.outcomes[0].prompt_logprobs[1:]):
        assert scores is not None
        for token, logprob in scores.top:
            found[position, token] = logprob
    return found
