"""A tokenizer of 256 bytes and four control tokens: every text has exactly one tokenisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend import Detokenizer, Message
from ..checks import is_utf8
from ..errors import InvalidField
from ..text.detokenizer import ByteDetokenizer, LazyBytes
from ..text.messages import plain_messages

END, SYSTEM, USER, ASSISTANT = 256, 257, 258, 259
_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": USER}
_SPELLED = {END: "<end>", SYSTEM: "<system>", USER: "<user>", ASSISTANT: "<assistant>"}
_BYTES = {token: bytes([token]) for token in range(END)} | {t: text.encode() for t, text in _SPELLED.items()}
_ALL = LazyBytes(_BYTES.__getitem__)
_VISIBLE = LazyBytes(_BYTES.__getitem__, hidden=_SPELLED.keys())


class ByteTokenizer:
    """A conversation is each message's role token and bytes, then `<assistant>`."""

    vocab_size = 260
    longest_token = 1

    def __init__(self, *, reasons: bool = False) -> None:
        self.reasoning_markers = ("<think>", "</think>") if reasons else None

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        return list(text.encode())

    def encode_chat(
        self, messages: Sequence[Message], *, template_options: dict[str, Any] | None = None
    ) -> list[int]:
        ids: list[int] = []
        for index, message in enumerate(plain_messages(messages, lambda text: text)):
            content = message.get("content") or ""
            if not is_utf8(content):
                raise InvalidField(f"messages[{index}].content", "text that UTF-8 can hold", content)
            ids += [_ROLES[message["role"]], *self.encode(content)]
        return [*ids, ASSISTANT]

    def word_sequences(self, word: str) -> list[tuple[int, ...]]:
        return [tuple(word.encode())]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return detokenizer.push(token_ids) + detokenizer.flush()

    def token_text(self, token_id: int) -> str:
        return _SPELLED.get(token_id) or self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return _BYTES[token_id]

    def detokenizer(
        self, *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> Detokenizer:
        return ByteDetokenizer(_VISIBLE if skip_special_tokens else _ALL)
