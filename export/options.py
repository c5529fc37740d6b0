"""What a user asks of an export, whatever it writes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..runtime.errors import InvalidField
from ..runtime.weights.manifest import Narrowing

SIZES = ("max_rows", "max_context", "max_batch_tokens")


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is the user's word for the checkpoint. `max_kl` in nats; None: by type. `text` calibrates and measures;
    None: the one that we ship. `tokenizer` is a directory, for checkpoints that have none. Raises `InvalidField`."""

    source: str
    tokenizer: Path | None = None
    quantize: Narrowing | None = None
    tp: int = 1
    pp: int = 1
    max_kl: float | None = None
    accept_quality: bool = False
    text: Path | None = None
    force: bool = False
    kernels: bool = False
    """Those of the card at hand, compiled and timed."""
    max_rows: int | None = None
    max_context: int | None = None
    max_batch_tokens: int | None = None
    """What the engine is sized for, in sequences and tokens; None: as for any model."""

    def __post_init__(self) -> None:
        if self.quantize not in (None, "int8", "int4", "fp8"):
            raise InvalidField("quantize", "None, 'int8', 'int4' or 'fp8'", self.quantize)
        for field in ("tp", "pp"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
                raise InvalidField(field, "an integer from 1 to 1024", value)
        for field in SIZES:
            value = getattr(self, field)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidField(field, "None or an integer of at least 1", value)
        if self.kernels and self.tp != 1:
            raise InvalidField(
                "kernels", "False where tp is not 1: they are those of one device", self.kernels
            )
        if self.max_kl is not None and not self.max_kl >= 0:
            raise InvalidField("max_kl", "a number of nats", self.max_kl)

    def words(self) -> tuple[str, ...]:
        """As the manifest keeps them, to make the same again."""
        defaults: dict[str, object] = {
            "tokenizer": None,
            "quantize": None,
            "tp": 1,
            "pp": 1,
            "max_kl": None,
            "text": None,
        }
        defaults |= dict.fromkeys(SIZES)
        given = {name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]}
        words = [
            word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))
        ]
        flags = {"--accept-quality": self.accept_quality, "--kernels": self.kernels}
        return (*words, *(flag for flag, is_set in flags.items() if is_set))
