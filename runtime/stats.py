"""An engine's counters, as users see them."""

from __future__ import annotations

import msgspec


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A moment of an engine, from the engine's own counters.

    `step_age_s` is the time since the worker last finished a step or found itself idle: it grows while a step hangs.
    """

    state: str
    """starting, ready, draining, closed or dead."""
    waiting: int = 0
    running: int = 0
    kv_pages_total: int = 0
    kv_pages_used: int = 0
    kv_pages_pinned: int = 0
    """Of those used: held for whoever continues a warm-up."""
    kept_responses: int = 0
    kept_bytes: int = 0
    """Of responses that are over and can still be followed."""
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    finished: dict[str, int] = {}
    """Choices ended, by finish reason."""
    late_events: int = 0
    """Events that arrived after their response was sealed, and were discarded."""
    steps: int = 0
    step_age_s: float = 0.0
