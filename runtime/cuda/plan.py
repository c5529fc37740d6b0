"""Bytes before anything is loaded: what a model takes on a card, and how many pages fit beside it.

Everything that the step reserves is here: weights, pages, the state of the slots, what the widest pass holds at once,
the graphs, and what CUDA and its libraries take for themselves (measured, and stated in `FIXED_BYTES`).
"""

from __future__ import annotations

from math import prod

import msgspec

from ..config import EngineConfig
from ..errors import CannotServe
from ..model.config import ModelConfig
from .sizes import PAGE_TOKENS, Sizes, buffer_shapes, page_elements

MAX_ROWS = 256
MAX_PREFILL_TOKENS = 8192
FIXED_BYTES = 768 * 2**20
"""The driver's context, loaded kernels, the libraries' workspaces."""
GRAPH_BYTES = 2 * 2**20
"""Of one captured pass, beside the activations that all share."""
MARGIN = 0.03
"""Of the free memory is left alone unless the engine is told how much it may use."""


class DevicePlan(msgspec.Struct, frozen=True):
    """`parts` are bytes by purpose; their sum is what the engine reserves."""

    sizes: Sizes
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def num_tokens(self) -> int:
        """That the pages hold, all rows together."""
        return (self.sizes.num_pages - 1) * PAGE_TOKENS


def plan_device(
    model: ModelConfig, config: EngineConfig, free_bytes: int, *, value_bytes: int = 2
) -> DevicePlan:
    """Size the pool: all that is left, at most one context for each row, at least one context.

    `value_bytes` is the size of what the model computes in. Raises `CannotServe` with the figures, and what would fit.
    """
    budget = config.memory_bytes or int(free_bytes * (1 - MARGIN))
    if budget > free_bytes:
        raise CannotServe(f"memory_bytes={budget:,}: the card has {free_bytes:,} bytes free")
    context = min(config.max_context or model.max_position, model.max_position)
    rows = config.max_rows or MAX_ROWS
    tokens = min(config.max_batch_tokens or MAX_PREFILL_TOKENS, MAX_PREFILL_TOKENS)
    tokens = max(tokens, PAGE_TOKENS)
    page_bytes = page_elements(model) * (1 if config.kv_dtype == "fp8" else value_bytes)
    one_context = -(-context // PAGE_TOKENS)
    bare = Sizes(context=context, max_rows=rows, prefill_tokens=tokens, num_pages=1)
    parts = _parts(model, config, bare, value_bytes)
    room = budget - sum(parts.values()) if config.kv_cache_bytes is None else config.kv_cache_bytes
    num_pages = min(room // page_bytes, one_context * rows + 1)
    if num_pages < one_context + 1 or sum(parts.values()) + num_pages * page_bytes > budget:
        raise CannotServe(_refusal(budget, parts, page_bytes, context))
    sizes = msgspec.structs.replace(bare, num_pages=num_pages)
    return DevicePlan(sizes, {**parts, "KV pages": num_pages * page_bytes})


def _parts(model: ModelConfig, config: EngineConfig, sizes: Sizes, value_bytes: int) -> dict[str, int]:
    return {
        "weights": weight_bytes(model, value_bytes, 1 if config.quantize else value_bytes),
        "activations": value_bytes * sum(prod(shape) for shape in buffer_shapes(model, sizes).values()),
        "slots": 4 * sizes.num_slots * (sizes.pages_per_row + 2) + 8 * sizes.max_tokens * 4,
        "rotary tables": 2 * 4 * sizes.context * model.head_dim,
        "sampling": 0,
        "graphs": 2 * len(sizes.row_buckets) * GRAPH_BYTES,
        "CUDA": FIXED_BYTES,
    }


def weight_bytes(model: ModelConfig, value_bytes: int, linear_bytes: int) -> int:
    """Of all weights as they lie on the card; tied embeddings lie there once, unless the output layer is narrowed."""
    hidden, inner, dim = model.hidden_size, model.intermediate_size, model.head_dim
    heads = dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    layer = hidden * (heads + inner * (3 if model.gated_mlp else 2))
    outputs = dim * (model.num_heads + 2 * model.num_kv_heads) + 2 * hidden + 2 * inner
    scales = 4 * (model.num_layers * outputs + model.vocab_size) if linear_bytes < value_bytes else 0
    shared = model.tied_embeddings and linear_bytes == value_bytes
    head = 0 if shared else model.vocab_size * hidden * linear_bytes
    embeddings = hidden * (model.vocab_size + (model.max_position if model.learned_positions else 0))
    norms = 2 * (2 * model.num_layers + 1) * hidden
    return model.num_layers * layer * linear_bytes + head + scales + (embeddings + norms) * value_bytes


def _refusal(budget: int, parts: dict[str, int], page_bytes: int, context: int) -> str:
    room = budget - sum(parts.values())
    pages = max(0, room // page_bytes - 1)
    taken = ", ".join(f"{name} {size:,}" for name, size in parts.items())
    needed = sum(parts.values()) + (-(-context // PAGE_TOKENS) + 1) * page_bytes
    fits = f"max_context={pages * PAGE_TOKENS} would fit" if pages else "no context would fit"
    return (
        f"{budget:,} bytes of the card may be used, one context of {context:,} tokens needs {needed:,}"
        f" ({taken}); {fits}"
    )
