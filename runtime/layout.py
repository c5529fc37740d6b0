"""Who sits where at one moment, and which pages hold what: plain data for people who watch, made on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from .sequence import Sequence


class Seated(msgspec.Struct, frozen=True):
    """One row that runs. KV of its first `computed` positions is written; `num_tokens` is its length, prompt included,
    and `limit` the most that it may become."""

    id: str
    choice: int
    user: str
    slot: int
    prompt_len: int
    computed: int
    num_tokens: int
    limit: int
    pages: tuple[int, ...]

    @classmethod
    def of(cls, row: Sequence) -> Seated:
        return cls(
            id=row.request.id,
            choice=row.choice,
            user=row.request.user,
            slot=row.slot,
            prompt_len=row.prompt_len,
            computed=row.computed,
            num_tokens=len(row.tokens),
            limit=row.limit,
            pages=tuple(row.pages),
        )


class Layout(msgspec.Struct, frozen=True):
    """`pages` says what each page is to the pool: `FREE`, `CACHED` or `USED`; page 0 is the step's own."""

    max_rows: int
    page_size: int
    seated: tuple[Seated, ...]
    pages: bytes


FREE, CACHED, USED = 0, 1, 2
