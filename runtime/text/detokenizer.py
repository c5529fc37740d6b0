"""Tokens to text as they come: the texts joined equal the whole sequence's decoding, and no character is broken.

Two kinds. Where each token stands for known bytes (byte-level BPE, SentencePiece) a UTF-8 decoder holds back at most
the three bytes of an unfinished character. Elsewhere a token's text depends on its neighbours (WordPiece) and the
text is the difference between two decodings of a short window.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence, Set

from .pieces import Pieces

HELD_TOKENS = 4


class ByteDetokenizer:
    """`table` gives a token's bytes; a token that shows nothing has none. `first` gives those of a text's first token,
    where they differ, and `strip` is how many leading spaces the text loses."""

    __slots__ = ("_first", "_held", "_strip", "_table")

    def __init__(self, table: LazyBytes, first: Callable[[int], bytes] | None = None, strip: int = 0) -> None:
        self._table = table
        self._first = first
        self._strip = strip
        self._held = b""

    @property
    def pieces(self) -> Pieces | None:
        """Tokens found there need not be pushed next: nothing is held back, and the text has begun."""
        return None if self._held or self._strip or self._first is not None else self._table.pieces

    def push(self, token_ids: Sequence[int]) -> str:
        if self._first is not None or self._strip:
            return self._push_leading(token_ids)
        table = self._table
        if len(token_ids) == 1:
            return self._decode(table[token_ids[0]])
        return self._decode(b"".join([table[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        return self._decode(b"", is_last=True)

    def _decode(self, raw: bytes, is_last: bool = False) -> str:
        if not self._held and raw.isascii():
            return raw.decode()
        raw = self._held + raw
        text, length = codecs.utf_8_decode(raw, "replace", is_last)
        self._held = raw[length:]
        return text

    def _push_leading(self, token_ids: Sequence[int]) -> str:
        """Until something is shown: the first token may differ, and leading spaces may go."""
        parts: list[bytes] = []
        for token_id in token_ids:
            part = self._table[token_id]
            if part and self._first is not None:
                part = self._first(token_id)
                self._first = None
            parts.append(part)
        raw = b"".join(parts)
        while self._strip and raw:
            self._strip, raw = (self._strip - 1, raw[1:]) if raw[:1] == b" " else (0, raw)
        return self._decode(raw)


class WindowDetokenizer:
    """`decode` turns a few token ids into text; `shown` says which ids show at all.

    With `glued` set, one of those tokens right after another comes without the decoder's space.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        shown: Callable[[int], bool],
        glued: Mapping[int, str] | None = None,
    ) -> None:
        self._decode = decode
        self._shown = shown
        self._glued = glued or {}
        self._window: list[int] = []
        self._read = 0
        self._last: int | None = None

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids if self._shown(token_id)])

    def flush(self) -> str:
        return self._advance(HELD_TOKENS)

    def _push_one(self, token_id: int) -> str:
        glue = self._last in self._glued and token_id in self._glued
        self._last = token_id
        if glue:
            held = self.flush()
            self._window, self._read = [token_id], 1
            return held + self._glued[token_id]
        self._window.append(token_id)
        return self._advance(len(self._window) - self._read)

    def _advance(self, held: int) -> str:
        """The text of the `held` tokens past `read`, if it is certain or they are many."""
        before = self._decode(self._window[: self._read])
        text = self._decode(self._window)
        if held < HELD_TOKENS and (text.endswith("\ufffd") or not text.startswith(before)):
            return ""
        self._window, self._read = self._window[self._read :], len(self._window) - self._read
        return text[len(before) :]


class LazyBytes(dict[int, bytes]):
    """Tokens' bytes as they are met: a whole vocabulary at the start would cost a tenth of a second."""

    def __init__(self, find: Callable[[int], bytes], *, hidden: Set[int] = frozenset()) -> None:
        """The tokens in `hidden` have none."""
        super().__init__(dict.fromkeys(hidden, b""))
        self._find = find
        self.pieces = Pieces(self)

    def __missing__(self, token_id: int) -> bytes:
        self[token_id] = found = self._find(token_id)
        return found
