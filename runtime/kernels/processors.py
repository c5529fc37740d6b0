"""The multiprocessors that programs are shared out among."""

from __future__ import annotations

import torch

INTERPRETED = 2
"""What Triton's interpreter is taken to have: every program costs it time."""


def num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count
