"""What the sampler knows of a slot, as 32-bit words side by side: their order, for the kernels and the host alike.

A float stands there by its bits. `row_word` and `row_number` read one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .workspace import ROW_WORDS

MODE = tl.constexpr(0)
"""What the row needs, as flags; 0: an idle slot, of which nothing is read."""
SEED_LOW = tl.constexpr(1)
SEED_HIGH = tl.constexpr(2)
CHOICE = tl.constexpr(3)
SCALE = tl.constexpr(4)
"""log2(e) / temperature: weights are exp2((logit - highest) * scale)."""
REACH = tl.constexpr(5)
"""How far below the highest a logit may lie that min_p keeps."""
TOP_K = tl.constexpr(6)
TOP_P = tl.constexpr(7)
TOP_P_REST = tl.constexpr(8)
"""What float32 loses of top_p."""
PRESENCE = tl.constexpr(9)
FREQUENCY = tl.constexpr(10)
REPETITION = tl.constexpr(11)
MIN_TOKENS = tl.constexpr(12)
PROMPT_LEN = tl.constexpr(13)
NUM_SEQUENCES = tl.constexpr(14)
NUM_TOP = tl.constexpr(15)
"""1 + how many of the likeliest are reported with each token; 0: no log-probabilities."""
PROMPT_TOP = tl.constexpr(16)
"""The same for tokens of the prompt."""
NUM_NAMED = tl.constexpr(17)
TOP_P_DECAY = tl.constexpr(18)
"""Its base-2 logarithm."""
TOP_P_BOUND = tl.constexpr(19)
NUM_WORDS = tl.constexpr(ROW_WORDS)

SEATED = tl.constexpr(1)
RANDOM = tl.constexpr(2)
CUT = tl.constexpr(4)
ADJUSTED = tl.constexpr(8)
ONLY_LISTED = tl.constexpr(16)
COUNTED = tl.constexpr(32)
SEQUENCES = tl.constexpr(64)

FINE, NAN, ALL_BANNED, INFINITE = 0, 1, 2, 3
"""Flags of a sampled row."""


@triton.jit
def row_word(words, slot, field):
    return tl.load(words + slot * NUM_WORDS + field)


@triton.jit
def row_number(words, slot, field: tl.constexpr):
    return tl.load(words + slot * NUM_WORDS + field).to(tl.float32, bitcast=True)
