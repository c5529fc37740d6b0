"""A word as the token sequences that spell it: what banning a word bans."""

from __future__ import annotations

from ..backend import Tokenizer


def word_sequences(tokenizer: Tokenizer, word: str) -> list[tuple[int, ...]]:
    """The ways a word is tokenised: at the start of a text, after a space, and straight after something else."""
    newline, after = tokenizer.encode("\n", add_bos=False), tokenizer.encode("\n" + word, add_bos=False)
    found = [tokenizer.encode(word, add_bos=False), tokenizer.encode(" " + word, add_bos=False)]
    if after[: len(newline)] == newline:
        found.append(after[len(newline) :])
    return list(dict.fromkeys(tuple(ids) for ids in found if ids))
