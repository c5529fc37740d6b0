"""Control tokens under spellings that nobody can guess.

A tokenizer finds control tokens by their spelling, so text that spells one becomes one. Here each is renamed, inside
the tokenizer, to a random string: what a user writes can no longer match. The template's own control tokens are
renamed in its output before it is encoded, and only those: where a user's text spells one a mark stands in its place
while the template renders. All else is tokenised exactly as before.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from typing import Any

import msgspec

_ALWAYS = {"special": True, "single_word": False, "normalized": False}
"""A control token of the template's is one wherever it stands: what is missed would be encoded by its secret name."""


_MARKED = re.compile(r"e|z(\d+)z")


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class SecretSpelling:
    """`spelled` maps each control token's id to its public spelling; `rename` changes a `tokenizer.json`."""

    def __init__(self, spec: dict[str, Any], names: Collection[str] = ()) -> None:
        """`names` are spellings that are control tokens whatever the spec says: its BOS, its EOS."""
        self._key = secrets.token_hex(16)
        added = msgspec.convert(spec.get("added_tokens") or [], list[_AddedToken])
        vocab = spec["model"].get("vocab")
        known = {token.content: token.id for token in added} | (vocab if isinstance(vocab, dict) else {})
        named = {known[name]: name for name in names if name in known}
        self.spelled = {token.id: token.content for token in added if token.special and token.content} | named
        self._ids = {spelling: token_id for token_id, spelling in self.spelled.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._starts = {spelling[:n] for spelling in self._ids for n in range(1, len(spelling))}
        self._ends = {spelling[n:] for spelling in self._ids for n in range(1, len(spelling))}
        self._longest = max(map(len, self._ids), default=0)

    def rename(self, spec: dict[str, Any]) -> dict[str, Any]:
        """A copy of the `tokenizer.json` whose control tokens have their secret names."""
        added = {entry["id"]: entry for entry in spec.get("added_tokens") or []}
        for token_id in self.spelled:
            entry = {"lstrip": False, "rstrip": False, **added.get(token_id, {})}
            added[token_id] = entry | _ALWAYS | {"id": token_id, "content": self._secret(token_id)}
        model = dict(spec["model"])
        if isinstance(model.get("vocab"), dict):
            model["vocab"] = {self._renamed(token): token_id for token, token_id in model["vocab"].items()}
        elif isinstance(model.get("vocab"), list):
            model["vocab"] = [[self._renamed(token), score] for token, score in model["vocab"]]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._renamed(model["unk_token"])
        return spec | {"added_tokens": list(added.values()), "model": model, "post_processor": None}

    def mark(self) -> str:
        """A fresh mark for one conversation. It begins with nothing that could end the mark before it."""
        return "a" + secrets.token_hex(16)

    def marked(self, text: str, mark: str) -> str:
        """`text` with a mark for each control token it spells, and at an edge that could become part of one."""
        text = self._control.sub(lambda found: f"{mark}z{self._ids[found[0]]}z", text)
        body = text.strip()
        if not body:
            return text
        lead, tail = text[: text.index(body)], text[text.index(body) + len(body) :]
        lengths = range(1, min(self._longest, len(body)) + 1)
        before = f"{mark}e" if any(body[:n] in self._ends for n in lengths) else ""
        after = f"{mark}e" if any(body[-n:] in self._starts for n in lengths) else ""
        return lead + before + body + after + tail

    def seal(self, rendered: str, mark: str) -> str:
        """The template's control tokens under their secret names; what was marked as it was written."""
        sealed = self._control.sub(lambda found: self._secret(self._ids[found[0]]), rendered)
        before, *marked = sealed.split(mark)
        return before + "".join([self._unmarked(text, mark) for text in marked])

    def reveal(self, text: str) -> str:
        """Decoded text with the public spellings."""
        return re.sub(self._key + r"z(\d+)z", lambda found: self.spelled[int(found[1])], text)

    def _unmarked(self, text: str, mark: str) -> str:
        """What came after a mark."""
        found = _MARKED.match(text)
        if found is None:
            return mark + text
        return (self.spelled[int(found[1])] if found[1] else "") + text[found.end() :]

    def _renamed(self, token: str) -> str:
        return self._secret(self._ids[token]) if token in self._ids else token

    def _secret(self, token_id: int) -> str:
        return f"{self._key}z{token_id}z"
