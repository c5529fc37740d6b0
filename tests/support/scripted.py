"""Scripted engines for tests: replies that hold still until they are cancelled, faults, and ways to wait for them."""

from __future__ import annotations

from typing import Any

from pace import Pace

from jitney.runtime import DynamicEngine, EngineConfig, Event
from jitney.runtime.testing import Reply, Script, ScriptedBackend

FOREVER = 1e6
REPLIES = [
    Reply(match="hold", first_token_s=FOREVER),
    Reply(match="first", text="first", token_s=FOREVER),
    Reply(match="sick", text="sick now", fail_after=3),
    Reply(match="crash", text="crash now", fail_after=3, fault="step"),
    Reply(match="death", text="death now", first_token_s=0.001, fail_after=3, fault="worker"),
    Reply(match="endless", text="endless " * 400),
]
"""By a word in the prompt; any other prompt is echoed."""


def backend(max_rows: int = 4, context_length: int = 4096, pace: Pace | None = None) -> ScriptedBackend:
    script = Script(max_rows=max_rows, context_length=context_length, reply=REPLIES)
    return (
        ScriptedBackend(script)
        if pace is None
        else ScriptedBackend(script, clock=pace.clock, sleep=pace.sleep)
    )


def engine(
    max_rows: int = 4, context_length: int = 4096, pace: Pace | None = None, **config: Any
) -> DynamicEngine:
    return DynamicEngine(backend(max_rows, context_length, pace), EngineConfig(**config))


async def followed(events: Any) -> list[Event]:
    """A stream to its end."""
    return [event async for event in events]


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(event.text for event in events if event.index == index)


def check_story(events: list[Event], n: int = 1) -> None:
    """One `done`, last; one finish for each choice, after which it is silent."""
    assert [event.kind for event in events].count("done") == 1 and events[-1].kind == "done"
    finishes = [event.index for event in events if event.kind == "finish"]
    assert sorted(finishes) == list(range(n))
    seqs = [event.seq for event in events]
    assert seqs == sorted(set(seqs))
    for index in range(n):
        mine = [event.kind for event in events if event.index == index and event.kind in ("delta", "finish")]
        assert mine[-1] == "finish"
    assert events[-1].usage is not None and events[-1].times is not None


async def settle(serving: DynamicEngine) -> None:
    """After a request that came later has ended, the worker has heard everything before it."""
    assert (await serving.generate("settle"))[0]["text"] == "settle"


async def check_empty(serving: DynamicEngine) -> None:
    """Nobody sits, waits or holds a page."""
    await settle(serving)
    stats = serving.stats()
    assert (stats.running, stats.waiting, stats.kv_pages_used) == (0, 0, 0)
