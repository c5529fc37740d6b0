"""The byte tokenizer keeps the contract of `Tokenizer`."""

from __future__ import annotations

import random

import pytest

from jitney.runtime.errors import InvalidField, RequestError
from jitney.runtime.testing import ByteTokenizer
from jitney.runtime.testing.byte_tokenizer import ASSISTANT, END, SYSTEM, USER

TOKENIZER = ByteTokenizer()


@pytest.mark.parametrize("text", ["", "plain", "é😀\0\n", "<end><user>", "\ufffd"])
def test_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text and all(token < END for token in ids)


def test_conversations() -> None:
    messages = [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "<end>"}]},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "c"},
    ]
    expected = [SYSTEM, 97, USER, *b"b<end>", ASSISTANT, USER, 99, ASSISTANT]
    assert TOKENIZER.encode_chat(messages) == expected


@pytest.mark.parametrize(
    "messages", [[], [5], [{"role": "wizard", "content": ""}], [{"role": "user", "content": 5}]]
)
def test_what_is_no_conversation_is_refused(messages: list[object]) -> None:
    with pytest.raises(RequestError):
        TOKENIZER.encode_chat(messages)  # type: ignore[arg-type]
    with pytest.raises(InvalidField):
        TOKENIZER.encode_chat([{"role": "user", "content": "\ud800"}])


@pytest.mark.parametrize("seed", range(20))
def test_pieces_joined_are_the_whole(seed: int) -> None:
    rng = random.Random(seed)
    ids = [rng.choice([*"é😀a".encode(), 0xE2, 0xFF, END, USER]) for _ in range(40)]
    for skip in (True, False):
        made = TOKENIZER.detokenizer(skip_special_tokens=skip)
        pieces, rest = [], list(ids)
        while rest:
            count = rng.randint(1, 4)
            pieces.append(made.push(rest[:count]))
            rest = rest[count:]
        assert "".join(pieces) + made.flush() == TOKENIZER.decode(ids, skip_special_tokens=skip)


def test_single_tokens() -> None:
    assert TOKENIZER.token_text(97) == "a" and TOKENIZER.token_text(0xFF) == "\ufffd"
    assert TOKENIZER.token_text(END) == "<end>" and TOKENIZER.token_bytes(END) == b"<end>"
    assert TOKENIZER.word_sequences("ab") == [(97, 98)]
