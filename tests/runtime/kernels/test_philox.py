"""The kernel's uniform numbers are those of the definition, bit for bit."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_rig import DEVICE

from jitney.runtime.kernels.philox import uniform as on_device
from jitney.runtime.steps.philox import uniform


@triton.jit
def _one(words, out):
    tl.store(out, on_device(tl.load(words), tl.load(words + 1), tl.load(words + 2), tl.load(words + 3)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**64 - 1), choice=st.integers(0, 2**31 - 1), position=st.integers(0, 2**31 - 1))
def test_a_number_is_the_definitions(seed: int, choice: int, position: int) -> None:
    words = np.array([seed & 0xFFFFFFFF, seed >> 32, choice, position], dtype=np.uint32).view(np.int32)
    out = torch.zeros(1, dtype=torch.float64, device=DEVICE)
    _one[(1,)](torch.from_numpy(words).to(DEVICE), out)
    assert out.item() == uniform(seed, choice, position)
