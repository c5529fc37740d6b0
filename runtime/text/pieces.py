"""Tokens that are whole text by themselves: made once, and shared by every answer that has them.

Nearly every token of nearly every answer is one. What an answer keeps of it, and what a socket is sent, is then known
before it comes, and costs a lookup.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Piece(msgspec.Struct, frozen=True, gc=False):
    """`token_ids` has one; `quoted` is the text as JSON writes it, between quotation marks that are left out."""

    token_ids: tuple[int, ...]
    text: str
    quoted: bytes


class Pieces(dict[tuple[int, ...], tuple[Piece, ...] | None]):
    """By the tokens that came at once: a piece of each, or None where one of them shows nothing or is not UTF-8 by
    itself. `table` gives a token's bytes. Single tokens are remembered."""

    def __init__(self, table: Mapping[int, bytes]) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, token_ids: tuple[int, ...]) -> tuple[Piece, ...] | None:
        if len(token_ids) == 1:
            self[token_ids] = found = self._made(token_ids)
            return found
        pieces: list[Piece] = []
        for token_id in token_ids:
            piece = self[(token_id,)]
            if piece is None:
                return None
            pieces += piece
        return tuple(pieces)

    def _made(self, token_ids: tuple[int, ...]) -> tuple[Piece, ...] | None:
        try:
            text = self._table[token_ids[0]].decode()
        except UnicodeDecodeError:
            return None
        return (Piece(token_ids, text, msgspec.json.encode(text)[1:-1]),) if text else None
