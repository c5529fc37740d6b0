"""Bytes before anything is loaded: what a model takes on a card, and how many pages fit beside it.

Everything that the step reserves is here: weights, pages, the state of the slots, what the widest pass holds at once,
the graphs, and what CUDA and its libraries take for themselves (measured, and stated in `FIXED_BYTES`).
"""

from __future__ import annotations

from math import prod

import msgspec

from ..config import EngineConfig
from ..errors import CannotServe
from ..kernels import workspace
from ..model.config import ModelConfig
from .ladder import Ladder
from .sizes import PAGE_TOKENS, Sizes, buffer_shapes, linear_widths, page_elements, region_words, slot_regions

MAX_ROWS = 256
MAX_PREFILL_TOKENS = 8192
FIXED_BYTES = 840 * 2**20
"""The driver's context, loaded kernels, the libraries' workspaces: 916 to 952 MiB were measured on an H100 together
with 93 graphs (benchmarks/card_memory.py)."""
GRAPH_BYTES = 2**20
"""Of one captured pass, beside the activations that all share."""
PROCESSORS = 132
"""Multiprocessors of a card that cannot be asked: an H100's."""
LINE_BYTES = 16
"""What a card loads tiles of keys in."""
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
    model: ModelConfig,
    config: EngineConfig,
    free_bytes: int,
    *,
    value_bytes: int = 2,
    processors: int = PROCESSORS,
) -> DevicePlan:
    """Size the pool: all that is left, at most one context for each row, at least one context.

    `value_bytes` is the size of what the model computes in, `processors` how many the card has. Raises `CannotServe`
    with the figures, and what would fit.
    """
    budget = config.memory_bytes or int(free_bytes * (1 - MARGIN))
    if budget > free_bytes:
        raise CannotServe(f"memory_bytes={budget:,}: the card has {free_bytes:,} bytes free")
    context = min(config.max_context or model.max_position, model.max_position)
    rows = config.max_rows or MAX_ROWS
    tokens = max(config.max_batch_tokens or MAX_PREFILL_TOKENS, PAGE_TOKENS)
    stored_bytes = 1 if config.kv_dtype == "fp8" else value_bytes
    if model.head_dim * stored_bytes % LINE_BYTES:
        raise CannotServe(
            f"head_dim={model.head_dim} in {stored_bytes} bytes each: attention on a card needs heads of a multiple"
            f" of {LINE_BYTES} bytes"
        )
    page_bytes = page_elements(model) * stored_bytes
    one_context = -(-context // PAGE_TOKENS)
    bare = Sizes(context=context, max_rows=rows, prefill_tokens=tokens, num_pages=1)
    parts = _parts(model, config, bare, value_bytes, processors)
    room = budget - sum(parts.values()) if config.kv_cache_bytes is None else config.kv_cache_bytes
    num_pages = min(room // page_bytes, one_context * rows + 1)
    if num_pages < one_context + 1 or sum(parts.values()) + num_pages * page_bytes > budget:
        raise CannotServe(_refusal(budget, config.kv_cache_bytes, parts, page_bytes, context))
    sizes = msgspec.structs.replace(bare, num_pages=num_pages)
    return DevicePlan(sizes, {**parts, "KV pages": num_pages * page_bytes})


def _parts(
    model: ModelConfig, config: EngineConfig, sizes: Sizes, value_bytes: int, processors: int
) -> dict[str, int]:
    gathered = workspace.for_gathered(sizes.max_tokens, sizes.max_samples)
    return {
        "weights": weight_bytes(model, value_bytes, 1 if config.quantize else value_bytes),
        "activations": value_bytes * sum(prod(shape) for shape in buffer_shapes(model, sizes).values()),
        "linear layers": _linears(model, config, sizes, value_bytes),
        "attention": _attention(model, config, sizes, value_bytes, processors),
        "slots": 4 * sum(map(region_words, slot_regions(sizes).values())) + workspace.num_bytes(gathered),
        "rotary tables": 2 * 4 * sizes.context * model.head_dim,
        "sampling": _sampling(model, sizes),
        "graphs": sum(1 for _ in Ladder(sizes).graphs()) * GRAPH_BYTES,
        "CUDA": FIXED_BYTES,
    }


def _linears(model: ModelConfig, config: EngineConfig, sizes: Sizes, value_bytes: int) -> int:
    widths = linear_widths(model, narrow=config.quantize == "fp8")
    dtype = "float32" if value_bytes == 4 else "bfloat16"
    return workspace.num_bytes(workspace.for_linears(dtype, sizes.max_tokens, widths))


def _attention(
    model: ModelConfig, config: EngineConfig, sizes: Sizes, value_bytes: int, processors: int
) -> int:
    if config.mode == "deterministic":
        return 0
    rows, item_bytes = sizes.row_buckets[-1], 1 if config.kv_dtype == "fp8" else value_bytes
    programs = workspace.most_programs(model.head_dim, item_bytes, processors)
    parts = workspace.for_decode_attention(
        programs, rows, model.num_heads, model.num_kv_heads, model.head_dim
    )
    plans = len(model.windows) * workspace.num_bytes(workspace.for_decode_plan(programs))
    return workspace.num_bytes(parts) + plans


def _sampling(model: ModelConfig, sizes: Sizes) -> int:
    rows, vocab = sizes.max_samples, model.vocab_size
    block, part = workspace.SCAN_BLOCK, workspace.SCAN_PART
    by_slot = workspace.for_slots(sizes.num_slots, vocab).values()
    launches = workspace.for_sampling(rows, vocab, block, part, workspace.SHORTLISTED)
    scores = workspace.for_scores(rows, vocab, block, part)
    return 4 * sum(region_words(buffer.shape) for buffer in by_slot) + workspace.num_bytes(launches, scores)


def weight_bytes(model: ModelConfig, value_bytes: int, linear_bytes: int) -> int:
    """Of all weights as they lie on the card; tied embeddings lie there once, unless the output layer is narrowed."""
    hidden, inner, dim = model.hidden_size, model.intermediate_size, model.head_dim
    qkv, ups = dim * (model.num_heads + 2 * model.num_kv_heads), linear_widths(model, narrow=False).ups
    matrices = hidden * (qkv + dim * model.num_heads + ups + inner)
    scales = 4 * (model.num_layers * (qkv + hidden + ups + hidden) + model.vocab_size)
    biases = qkv * model.qkv_bias + hidden * model.attention_out_bias + (ups + hidden) * model.mlp_bias
    heads = dim * (model.num_heads + model.num_kv_heads) if model.qk_norm else 0
    norm = hidden * (1 if model.norm == "rms" else 2)
    vectors = model.num_layers * (biases + heads + 2 * norm) + norm
    is_narrow = linear_bytes < value_bytes
    head = 0 if model.tied_embeddings and not is_narrow else model.vocab_size * hidden * linear_bytes
    embeddings = hidden * (model.vocab_size + (model.max_position if model.learned_positions else 0))
    return (
        model.num_layers * matrices * linear_bytes
        + head
        + (scales if is_narrow else 0)
        + (embeddings + vectors) * value_bytes
    )


def _refusal(
    budget: int, kv_cache_bytes: int | None, parts: dict[str, int], page_bytes: int, context: int
) -> str:
    room, told = budget - sum(parts.values()), ""
    if kv_cache_bytes is not None:
        room, told = min(room, kv_cache_bytes), f" (kv_cache_bytes={kv_cache_bytes:,} for pages)"
    pages = max(0, room // page_bytes - 1)
    taken = ", ".join(f"{name} {size:,}" for name, size in parts.items())
    needed = sum(parts.values()) + (-(-context // PAGE_TOKENS) + 1) * page_bytes
    fits = f"max_context={pages * PAGE_TOKENS} would fit" if pages else "no context would fit"
    return (
        f"{budget:,} bytes of the card may be used{told}, one context of {context:,} tokens needs {needed:,}"
        f" ({taken}); {fits}"
    )
