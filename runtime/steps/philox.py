"""Philox4x32-10 (Salmon et al., SC 2011): random numbers as a function of a key and a counter, with no state.

A draw is therefore the same on every device and in every batch.
"""

from __future__ import annotations

_WORD = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words from a 128-bit counter and a 64-bit key, each as 32-bit words, lowest first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & _WORD, (low >> 32) ^ c3 ^ k1, low & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, choice: int, position: int, draw: int = 0) -> float:
    """A number in [0, 1) with 53 random bits: key = seed, counter = (position, choice, draw, 0)."""
    key = (seed & _WORD, (seed >> 32) & _WORD)
    first, second, _, _ = philox4x32((position, choice, draw, 0), key)
    return ((first >> 5) * 2**26 + (second >> 6)) / 2**53
