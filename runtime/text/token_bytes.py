"""What bytes each token stands for, where the decoder of a tokenizer allows to say so token by token."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

TokenBytes = Callable[[str], bytes]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class DecoderRule(NamedTuple):
    """How spelled tokens become bytes: `plain` anywhere, unless `first` says how the first token of a text does.

    `strip` is how many leading spaces the whole text loses.
    """

    plain: TokenBytes
    first: TokenBytes | None = None
    strip: int = 0


def decoder_rule(spec: dict[str, Any]) -> DecoderRule | None:
    """The rule of a `tokenizer.json`; None where a token's text depends on its neighbours."""
    decoder = spec.get("decoder") or {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return DecoderRule(_byte_level())
    if kinds == ["Metaspace"]:
        return _metaspace(steps[0])
    if not set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"} or "ByteFallback" not in kinds:
        return None
    return _sentencepiece(steps)


def _byte_level() -> TokenBytes:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}

    def token_bytes(token: str) -> bytes:
        try:
            return bytes([byte_of[char] for char in token])
        except KeyError:
            return token.encode()

    return token_bytes


def _metaspace(step: dict[str, Any]) -> DecoderRule:
    mark = step.get("replacement", "▁")
    if step.get("prepend_scheme", "always") == "never":
        return DecoderRule(lambda token: token.replace(mark, " ").encode())
    return DecoderRule(
        lambda token: token.replace(mark, " ").encode(), lambda token: token.replace(mark, "").encode()
    )


def _sentencepiece(steps: list[dict[str, Any]]) -> DecoderRule | None:
    replaced: list[tuple[str, str]] = []
    strip = 0
    for step in steps:
        if step["type"] == "Replace":
            pattern = step.get("pattern", {}).get("String")
            if pattern is None:
                return None
            replaced.append((pattern, step.get("content", "")))
        elif step["type"] == "Strip":
            if step.get("content") != " " or step.get("stop"):
                return None
            strip = int(step.get("start", 0))

    def token_bytes(token: str) -> bytes:
        match = _BYTE_TOKEN.fullmatch(token)
        if match:
            return bytes([int(match[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return DecoderRule(token_bytes, strip=strip)
