"""Tokenizers rebuilt from GGUF metadata: pre-tokenizers by what they split, SentencePiece by its own algorithm."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import pre_tokenizers

from jitney.runtime.errors import ModelError
from jitney.runtime.text.tokenizer import ModelTokenizer
from jitney.runtime.weights.gguf_file import GgufFile
from jitney.runtime.weights.gguf_tokenizer import gguf_tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXT = "I'LL pay 12345\u00a0€!!\n\n  x=1"


def built(**metadata: Any) -> ModelTokenizer:
    keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    file = cast(GgufFile, SimpleNamespace(path=Path("tiny.gguf"), metadata=keys))
    return ModelTokenizer(gguf_tokenizer(file), len(metadata["tokens"]))


def byte_pair(pre: str, words: list[str]) -> ModelTokenizer:
    """A vocabulary in which every word can be merged, so that only the pre-tokenizer keeps pieces apart."""
    tokens, merges = list(ALPHABET), []
    for word in words:
        for cut in range(2, len(word) + 1):
            if word[:cut] not in tokens:
                tokens.append(word[:cut])
                merges.append(f"{word[: cut - 1]} {word[cut - 1]}")
    return built(model="gpt2", pre=pre, tokens=tokens, merges=merges, add_bos_token=False)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["I", "'", "LL", " pay", " 12345"]),
        ("smollm", ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5"]),
        ("llama-bpe", ["I", "'LL", " pay", " ", "123", "45"]),
        ("llama-v3", ["I", "'LL", " pay", " ", "123", "45"]),
        ("qwen2", ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5"]),
    ],
)
def test_pre_tokenizers_split_where_they_should(pre: str, pieces: list[str]) -> None:
    text = "I'LL pay 12345"
    words = ["I'LL", "'LL", "LL", "Ġpay", "Ġ12345", "12345", "45", "pay"]
    tokenizer = byte_pair(pre, words)
    assert [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text)] == pieces
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_qwen2_composes_characters() -> None:
    tokenizer = byte_pair("qwen2", [])
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


def scored_pieces(random_: random.Random) -> tuple[list[str], list[float]]:
    letters = ["▁", *"abc"]
    longer = {"".join(random_.choices(letters, k=random_.randint(2, 4))) for _ in range(30)}
    pieces = sorted(longer - set(letters))
    random_.shuffle(pieces)
    return letters + pieces, [-100.0] * len(letters) + [-float(rank) for rank in range(len(pieces))]


def sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """Join the neighbours whose union scores highest, leftmost first, until none is a piece."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [
            (-scores[a + b], n)
            for n, (a, b) in enumerate(zip(pieces, pieces[1:], strict=False))
            if a + b in scores
        ]
        if not joined:
            return pieces
        _, n = min(joined)
        pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]


def llama_vocabulary(pieces: list[str], scores: list[float]) -> dict[str, Any]:
    special, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "model": "llama",
        "tokens": [*special, *bytes_, *pieces],
        "scores": [0.0] * (3 + 256) + scores,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def test_sentencepiece_joins_by_score() -> None:
    random_ = random.Random(8)
    for _ in range(30):
        pieces, scores = scored_pieces(random_)
        vocabulary = llama_vocabulary(pieces, scores)
        tokenizer = built(**vocabulary)
        ranks = dict(zip(pieces, scores, strict=True))
        for _ in range(20):
            text = "".join(random_.choices("abc ", k=random_.randint(1, 20)))
            ids = tokenizer.encode(text)
            assert [vocabulary["tokens"][token_id] for token_id in ids] == [
                "<s>",
                *sentencepiece(text, ranks),
            ]
            assert tokenizer.decode(ids) == text


def test_sentencepiece_falls_back_to_bytes() -> None:
    tokenizer = built(**llama_vocabulary(["▁", "a"], [-1.0, -2.0]))
    ids = tokenizer.encode("a€</s>", add_bos=False)
    assert [tokenizer.token_bytes(token_id) for token_id in ids[:5]] == [
        b" ",
        b"a",
        b"\xe2",
        b"\x82",
        b"\xac",
    ]
    assert tokenizer.decode(ids) == "a€</s>"
    assert 2 not in ids


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens": None}, "tokens: expected list"),
        ({"tokens": ["a", 3]}, "tokens: expected a list of str"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "tokens: expected distinct tokens"),
        ({"token_type": [1]}, "tokens: expected distinct tokens, one type for each"),
        ({"scores": [1.0]}, "scores: expected one for each token"),
        ({"model": 3}, "model: expected str"),
        ({"model": "gpt2", "merges": ["a"], "pre": "gpt-2"}, "not a tokenizer that can be used"),
        ({"model": "gpt2", "merges": ["no token"], "pre": "gpt-2"}, "not a tokenizer that can be used"),
        ({"model": "gpt2", "merges": []}, "pre 'default' is not served; served: .*llama-bpe"),
        ({"add_bos_token": 1}, "add_bos_token: expected bool"),
    ],
)
def test_what_is_broken_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=f"tiny.gguf: .*{named}"):
        built(**llama_vocabulary(["▁", "a"], [-1.0, -2.0]) | changes)
