"""Bytes before anything is loaded: what a model takes on the CPU, and how many pages fit beside it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ..config import EngineConfig
from ..errors import CannotServe
from ..model.config import ModelConfig

PAGE_TOKENS = 32
MAX_ROWS = 32
"""Unless the engine's settings say otherwise."""
DEFAULT_POOL_BYTES = 2 * 2**30


class MemoryPlan(msgspec.Struct, frozen=True):
    """`num_pages` counts page 0, the step's own. `context` is the longest sequence, in tokens."""

    context: int
    num_pages: int


def plan_memory(
    model: ModelConfig, config: EngineConfig, value_bytes: int, weight_bytes: int, free_bytes: int | None
) -> MemoryPlan:
    """Size the pool: at least one whole context, at most one for each row. Raises `CannotServe` with the figures.

    `value_bytes` is the size of one number of the cache. `free_bytes` None: unknown, and trusted to suffice.
    """
    context = min(config.max_context or model.max_position, model.max_position)
    page_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * PAGE_TOKENS * value_bytes
    one_context = -(-context // PAGE_TOKENS)
    if config.kv_cache_bytes is not None:
        num_pages = config.kv_cache_bytes // page_bytes - 1
        if num_pages < one_context:
            raise CannotServe(
                f"kv_cache_bytes={config.kv_cache_bytes:,}: one context of {context} tokens takes "
                f"{(one_context + 1) * page_bytes:,} bytes; {_fitting(num_pages)}"
            )
    else:
        budget = DEFAULT_POOL_BYTES if free_bytes is None else min(DEFAULT_POOL_BYTES, free_bytes // 4)
        num_pages = max(budget // page_bytes - 1, one_context)
    num_pages = min(num_pages, one_context * (config.max_rows or MAX_ROWS))
    pool_bytes = (num_pages + 1) * page_bytes
    if free_bytes is not None and weight_bytes + pool_bytes > free_bytes:
        room = max(0, free_bytes - weight_bytes)
        raise CannotServe(
            f"{free_bytes:,} bytes of memory are free; weights take {weight_bytes:,} and the KV cache "
            f"{pool_bytes:,}; {_fitting(room // page_bytes - 1)} with kv_cache_bytes={room}"
        )
    return MemoryPlan(context, num_pages + 1)


def _fitting(num_pages: int) -> str:
    return f"max_context={num_pages * PAGE_TOKENS} would fit" if num_pages > 0 else "no context would fit"


def weight_bytes(model: ModelConfig, linear_bytes: int, other_bytes: int) -> int:
    """Bytes of all weights, where a number of a linear layer takes `linear_bytes` and any other `other_bytes`."""
    hidden, inner = model.hidden_size, model.intermediate_size
    heads = model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    linears = (
        model.num_layers * hidden * (heads + inner * (3 if model.gated_mlp else 2))
        + model.vocab_size * hidden
    )
    embeddings = hidden * (model.vocab_size + (model.max_position if model.learned_positions else 0))
    return linears * linear_bytes + embeddings * other_bytes


def free_memory() -> int | None:
    """Bytes that a new allocation may use, within the container's limit; None where the system does not say."""
    known = [free for free in (_machine_free(), _container_free()) if free is not None]
    return min(known, default=None)


def _container_free() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = int((root / "memory.max").read_text()), int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return limit - used + int(stat.get("inactive_file", 0))


def _machine_free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return None
