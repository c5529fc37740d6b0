"""Philox4x32-10 on the device, bit for bit `runtime/steps/philox.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _product(constant: tl.constexpr, word):
    """High and low word of a 32 by 32 bit product."""
    product = word.to(tl.uint64) * constant
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def uniform(seed_low, seed_high, choice, position):
    """The float64 in [0, 1) of draw 0 of a position: key = seed, counter = (position, choice, 0, 0)."""
    k0, k1 = seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True)
    c0, c1 = position.to(tl.uint32, bitcast=True), choice.to(tl.uint32, bitcast=True)
    c2 = c0 * 0
    c3 = c0 * 0
    for _ in tl.static_range(10):
        high_a, low_a = _product(0xD2511F53, c0)
        high_b, low_b = _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return ((c0 >> 5).to(tl.float64) * 67108864.0 + (c1 >> 6).to(tl.float64)) * 1.1102230246251565e-16
