"""A card's step for tests: on the card where there is one, else on the CPU by Triton's interpreter, without graphs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import build_step, leave_default_stream
from jitney.runtime.cuda.plan import plan_device
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.model.config import ModelConfig

CARD = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_CARD = CARD.type == "cuda"
interpreted = pytest.mark.skipif(IS_CARD, reason="runs on the CPU, in Triton's interpreter")


def make_step(
    model: ModelConfig,
    weights: Any,
    *,
    dtype: torch.dtype = torch.float32,
    num_pages: int = 40,
    naive: bool = False,
    **settings: Any,
) -> CudaStep:
    """A step with pages of its own number; settings are those of `EngineConfig`."""
    if CARD.type == "cuda":
        leave_default_stream(CARD)
    config = EngineConfig(**({"max_batch_tokens": 256, "tune_process": False} | settings))
    plan = plan_device(model, config, 8 * 2**30, value_bytes=dtype.itemsize)
    plan = msgspec.structs.replace(plan, sizes=msgspec.structs.replace(plan.sizes, num_pages=num_pages))
    return build_step(model, weights, config, plan, dtype, CARD, naive=naive)
