"""A tokenizer as data, whichever checkpoint it came from: what `ModelTokenizer` is built from."""

from __future__ import annotations

from typing import Any

import msgspec


class TokenizerDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """`spec` is the content of a `tokenizer.json`; `names` maps `bos_token`, `eos_token` and their like to spellings.

    `add_bos` None: as the spec's post-processor says. `source` is the file that errors name.
    """

    source: str
    spec: dict[str, Any]
    names: dict[str, str] = {}
    add_bos: bool | None = None
    chat_template: str | None = None
