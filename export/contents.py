"""The tensors of an export, one for each slot, in order: as the source has them, or narrowed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from ..runtime.errors import ModelError
from ..runtime.model.config import ModelConfig
from ..runtime.weights.manifest import Narrowing, Quality
from .narrower import Narrower
from .rounding import Rounding
from .source import Source
from .stacks import Slot, Stack, group_size, stacks

TEXT = Path(__file__).with_name("text.txt")
WINDOW_TOKENS = 256
MAX_TOKENS = 8192
MAX_KL = {"int8": 0.1, "int4": 0.3, "fp8": 0.1}
"""Nats. More than this, and an export refuses unless told otherwise."""

Report = Callable[[str, int, int], None]
"""What is being done, the bytes that are done, the bytes that there are."""


class Contents:
    """`config` is what is written: narrowed, and with an output layer of its own where that is narrowed too.

    `tensors` may be read once; then `quality`, `kv_scales` and `whole_scales` are known, for narrowed ones.
    """

    def __init__(
        self,
        source: Source,
        narrowing: Narrowing | None,
        *,
        narrow_head: bool = False,
        own_head: bool = False,
        whole: bool = False,
        num_ranks: int = 1,
        text: Path | None = None,
    ) -> None:
        """`own_head`: an output layer that shares the embeddings is written all the same. `whole`, for fp8: a matrix
        has one scale, which is no tensor here.

        Raises `ModelError` where the source has no tokenizer to calibrate with, or the text is too short."""
        self._source = source
        untied = (narrow_head or own_head) and source.config.tied_embeddings
        self.config: ModelConfig = msgspec.structs.replace(
            source.config,
            quantization=narrowing,
            tied_embeddings=source.config.tied_embeddings and not untied,
        )
        self.group = group_size(source.config, num_ranks) if narrowing == "int4" else 0
        self.stacks: list[Stack] = stacks(
            self.config, narrowing, narrow_head=narrow_head, group=self.group, whole=whole
        )
        self._dtype: torch.dtype = getattr(torch, source.config.dtype)
        self._narrower: Narrower | None = None
        if narrowing is not None:
            rounding = Rounding(narrowing, self.group, self._dtype, whole)
            path = text or TEXT
            tokens = _windows(source, path)
            self._narrower = Narrower(
                source, rounding, tokens, path.name, narrow_head=narrow_head, own_head=own_head
            )

    def tensors(self, report: Report) -> Iterator[Tensor]:
        """Raises `ModelError` where the source is damaged."""
        total, done = self.num_bytes, 0
        values = self._narrower.tensors() if self._narrower else map(self._plain, self.slots)
        for slot, tensor in zip(self.slots, values, strict=True):
            assert tuple(tensor.shape) == slot.shape
            yield tensor
            done += slot.num_bytes
            report("weights", done, total)

    @property
    def slots(self) -> list[Slot]:
        return [slot for stack in self.stacks for slot in stack]

    @property
    def num_bytes(self) -> int:
        return sum(slot.num_bytes for slot in self.slots)

    @property
    def quality(self) -> Quality | None:
        return self._narrower.quality if self._narrower else None

    @property
    def kv_scales(self) -> tuple[tuple[float, float], ...]:
        """For each layer, of keys and of values: what a cache of 8 bits multiplies by."""
        return tuple(self._narrower.kv_scales) if self._narrower else ()

    @property
    def whole_scales(self) -> Mapping[str, tuple[float, float]]:
        """By the name of each fused matrix's first: what the matrix and its inputs are multiplied by."""
        return self._narrower.whole_scales if self._narrower else {}

    def check_quality(self, max_kl: float | None, accept: bool) -> None:
        """Raises `ModelError` where too much was lost and nobody has said that this is fine."""
        quality, narrowing = self.quality, self.config.quantization
        if quality is None or narrowing is None:
            return
        if not all(map(isfinite, (quality.kl, quality.perplexity, quality.source_perplexity))):
            raise ModelError(
                f"{self._source.name}: {narrowing}: the model's logits are no numbers (perplexity"
                f" {quality.perplexity}, source {quality.source_perplexity}): does a weight hold NaN or an infinity?"
            )
        if accept:
            return
        bound = MAX_KL[narrowing] if max_kl is None else max_kl
        if not quality.kl <= bound:
            raise ModelError(
                f"{self._source.name}: {narrowing} loses too much: mean KL {quality.kl:.4f} nats, bound {bound};"
                f" perplexity {quality.perplexity:.2f}, source {quality.source_perplexity:.2f}."
                " --max-kl sets the bound, --accept-quality takes it as it is"
            )

    def _plain(self, slot: Slot) -> Tensor:
        shared = slot.name == "lm_head.weight" and self._source.config.tied_embeddings
        name = "model.embed_tokens.weight" if shared else slot.name
        return self._source.weights.get(name).to(self._dtype)


def _windows(source: Source, path: Path) -> Tensor:
    """The text as token ids [windows, length]."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    length = min(WINDOW_TOKENS, source.config.max_position)
    ids = torch.tensor(source.backend().tokenizer.encode(text)[:MAX_TOKENS], dtype=torch.int64)
    count = len(ids) // length
    if count < 2:
        raise ModelError(f"{path}: expected at least {2 * length} tokens to calibrate with, found {len(ids)}")
    return ids[: count * length].view(count, length)
