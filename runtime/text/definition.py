"""A tokenizer as data, whichever checkpoint it came from: what `ModelTokenizer` is built from."""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import ModelError


class TokenizerDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """`spec` is the content of a `tokenizer.json`; `names` maps `bos_token`, `eos_token` and their like to spellings.

    `add_bos` None: as the spec's post-processor says. `source` is the file that errors name.
    """

    source: str
    spec: dict[str, Any]
    names: dict[str, str] = {}
    add_bos: bool | None = None
    chat_template: str | None = None


def num_tokens(definition: TokenizerDefinition) -> int:
    """One more than the highest token id. Raises `ModelError` where the spec lists no tokens."""
    model = definition.spec.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    added = definition.spec.get("added_tokens")
    ids = [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    ids += vocab.values() if isinstance(vocab, dict) else range(len(vocab)) if isinstance(vocab, list) else []
    counts = [each for each in ids if type(each) is int and each >= 0]
    if not counts:
        raise ModelError(f"{definition.source}: expected a vocabulary with token ids, found none")
    return max(counts) + 1
