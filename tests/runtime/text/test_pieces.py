"""Tokens that are whole text by themselves, and those that are not."""

from __future__ import annotations

import json
import random

import pytest

from jitney.runtime.text.detokenizer import ByteDetokenizer, LazyBytes
from jitney.runtime.text.pieces import Pieces

TOKENS = [
    b"a",
    b' "b"\\',
    b"\n\x00",
    "é".encode(),
    "😀".encode(),
    b"\xf0\x9f",
    b"\x98\x80",
    b"",
    b"\xff",
    b" c",
]
TABLE = LazyBytes(TOKENS.__getitem__)


def test_a_token_of_whole_text_is_a_piece_and_is_made_once() -> None:
    pieces = Pieces(TABLE)
    for token_id, raw in enumerate(TOKENS[:5]):
        found = pieces[(token_id,)]
        assert found is not None and found is pieces[(token_id,)]
        (piece,) = found
        assert piece.token_ids == (token_id,) and piece.text == raw.decode()
        assert json.loads(b'"%b"' % piece.quoted) == piece.text
    for token_id in (5, 6, 7, 8):
        assert pieces[(token_id,)] is None


def test_several_at_once_are_the_pieces_of_each_and_are_not_remembered() -> None:
    pieces = Pieces(TABLE)
    found = pieces[(0, 3, 0)]
    assert found is not None and [piece.text for piece in found] == ["a", "é", "a"]
    assert pieces[(0, 5, 6)] is None and pieces[(0, 7)] is None
    assert all(len(tokens) == 1 for tokens in pieces)


@pytest.mark.parametrize("seed", range(30))
def test_what_is_found_need_not_be_pushed(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(len(TOKENS)) for _ in range(60)]
    strip, first = rng.choice([0, 1]), rng.choice([None, lambda token_id: TOKENS[token_id].lstrip()])
    pushed, found = (ByteDetokenizer(TABLE, first, strip) for _ in range(2))
    num_found = 0
    shown = ["", ""]
    for token in tokens:
        shown[0] += pushed.push((token,))
        piece = None if found.pieces is None else found.pieces[(token,)]
        num_found += piece is not None
        shown[1] += found.push((token,)) if piece is None else piece[0].text
        assert shown[0] == shown[1]
    assert shown[0] + pushed.flush() == shown[1] + found.flush() and num_found
