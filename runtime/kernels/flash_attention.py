"""Prefill attention by FlashAttention 3, where the package `tokenspeed-fa3` is installed and the card is a Hopper."""

from __future__ import annotations

import importlib
from functools import cache

import torch
from torch import Tensor

from .paging import Chunks, LayerCache

HEAD_DIMS = (64, 128, 192, 256)


@cache
def missing(device: torch.device) -> str | None:
    """Why this process cannot use it on a device, or None where it can. Loading the library takes about a second."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return "FlashAttention 3 is for compute capability 9.0"
    try:
        importlib.import_module("flash_attn_3._C")
    except (ImportError, OSError) as error:
        return f"flash_attn_3 does not load ({error}); it comes with the extra [fa3]"
    return None


def flash_attention(
    qkv: Tensor,
    chunks: Chunks,
    layer: LayerCache,
    out: Tensor,
    *,
    window: int | None = None,
    fresh: bool = False,
) -> None:
    """As `prefill_attention`, for bfloat16 and `HEAD_DIMS`. With `fresh`, every chunk starts at
    position 0 and its keys are taken from qkv, where `rope_write` has kept them, which is faster than from pages and
    serves any storage type; otherwise the pool is of bfloat16."""
    q_heads, kv_heads, dim = layer.num_q_heads(qkv), layer.num_kv_heads, layer.head_dim
    heads = qkv.view(qkv.shape[0], -1, dim)
    q, k, v = heads.split([q_heads, kv_heads, kv_heads], dim=1)
    # Where chunks begin; how long they are follows from `seqused_q`, so that what the last entry says is not used.
    begins = torch.cat([chunks.offsets, chunks.offsets[-1:]])
    if fresh:
        where = {"cu_seqlens_k": begins, "max_seqlen_k": qkv.shape[0], "seqused_k": chunks.counts}
    else:
        k, v = layer.pool.transpose(2, 3).unbind(1)
        where = {
            "page_table": layer.tables,
            "kv_batch_idx": chunks.slots,
            "seqused_k": chunks.starts + chunks.counts,
        }
    torch.ops.flash_attn_3.fwd(
        q,
        k,
        v,
        out=out.view(-1, q_heads, dim),
        cu_seqlens_q=begins,
        seqused_q=chunks.counts,
        max_seqlen_q=qkv.shape[0],
        softmax_scale=dim**-0.5,
        is_causal=True,
        window_size_left=-1 if window is None else window - 1,
        window_size_right=-1 if window is None else 0,
        num_splits=1,
        **where,
    )
