"""Which kernel attends chunks of prompts, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .flash_attention import HEAD_DIMS, flash_attention, missing
from .paging import Chunks, LayerCache
from .prefill_attention import prefill_attention


@dataclass(frozen=True, slots=True)
class PrefillAttention:
    """Call it as `prefill_attention`. `fresh` says that every chunk starts at position 0 and that `rope_write` has
    kept the turned keys in qkv: then FlashAttention 3 reads them there, which is faster than from pages."""

    flash: bool
    flash_on_pages: bool
    reason: str

    @property
    def name(self) -> str:
        return "FlashAttention 3" if self.flash else "own kernel"

    def __call__(
        self,
        qkv: Tensor,
        chunks: Chunks,
        cache: LayerCache,
        out: Tensor,
        *,
        window: int | None = None,
        fresh: bool = False,
    ) -> None:
        if self.flash_on_pages or (self.flash and fresh):
            flash_attention(qkv, chunks, cache, out, window=window, fresh=fresh)
        else:
            prefill_attention(qkv, chunks, cache, out, window=window)


def prefill_attention_for(
    device: torch.device,
    dtype: torch.dtype,
    stored: torch.dtype,
    head_dim: int,
    *,
    deterministic: bool = False,
) -> PrefillAttention:
    """For a model that computes in `dtype` and keeps keys and values as `stored`."""
    if deterministic:
        return PrefillAttention(False, False, "its sums have one order, whatever else is in the batch")
    if dtype != torch.bfloat16:
        return PrefillAttention(False, False, f"FlashAttention 3 does not compute in {dtype}")
    if head_dim not in HEAD_DIMS:
        return PrefillAttention(False, False, f"FlashAttention 3 has no head dim {head_dim}")
    reason = missing(device)
    if reason is not None:
        return PrefillAttention(False, False, reason)
    if stored != torch.bfloat16:
        return PrefillAttention(
            True, False, f"for chunks from position 0; pages of {stored} by the own kernel"
        )
    return PrefillAttention(True, True, "the fastest on this card")
