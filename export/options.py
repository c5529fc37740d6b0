"""What a user asks of an export, whatever it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from ..runtime.checks import check_fields, expecting, integer, is_number
from ..runtime.config import MOST_TOKENS
from ..runtime.errors import InvalidField
from ..runtime.weights.manifest import Narrowing

SIZES = ("max_rows", "max_context", "max_batch_tokens")


_PARTS = integer(1, 1024)
_SIZE = integer(1, MOST_TOKENS)
_NATS = expecting("a number of nats", lambda value: is_number(value) and value >= 0)


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is the user's word for the checkpoint. `max_kl` in nats; None: by type. `text` calibrates and measures;
    None: the one that we ship. `tokenizer` is a directory, for checkpoints that have none. Raises `InvalidField`."""

    source: str
    force: bool = False
    tokenizer: Path | None = None
    quantize: Narrowing | None = None
    tp: Annotated[int, _PARTS] = 1
    pp: Annotated[int, _PARTS] = 1
    max_kl: Annotated[float | None, _NATS] = None
    text: Path | None = None
    max_rows: Annotated[int | None, _SIZE] = None
    max_context: Annotated[int | None, _SIZE] = None
    max_batch_tokens: Annotated[int | None, _SIZE] = None
    """What the engine is sized for, in sequences and tokens; None: as for any model."""
    accept_quality: bool = False
    kernels: bool = False
    """Those of the card at hand, compiled and timed."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kernels and self.tp != 1:
            raise InvalidField(
                "kernels", "False where tp is not 1: they are those of one device", self.kernels
            )

    def words(self) -> tuple[str, ...]:
        """As the manifest keeps them, to make the same again."""
        words: list[str] = []
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if field.name in ("source", "force") or value == field.default:
                continue
            words.append("--" + field.name.replace("_", "-"))
            words += [] if value is True else [str(value)]
        return tuple(words)
