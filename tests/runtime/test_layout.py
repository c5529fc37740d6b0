"""A look at the seats and the pages: true at its moment, and balanced like the books that it is taken from."""

from __future__ import annotations

import asyncio
from collections import Counter

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.batch import Capacity, RowOutcome, RowSampling
from jitney.runtime.layout import CACHED, FREE, USED, Layout
from jitney.runtime.messages import Generate
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.testing import Reply, Script, ScriptedBackend


def counts(layout: Layout) -> dict[int, int]:
    return dict(Counter(layout.pages[1:]))


def test_rows_pages_and_what_they_leave_behind() -> None:
    made = Scheduler(Capacity(20, 4, 3), max_batch_tokens=8)
    assert counts(made.seating.layout()) == {FREE: 19}
    made.add(Generate(id="a", prompt=tuple(range(10)), sampling=RowSampling(seed=1), max_tokens=6, user="u"))
    batch = made.plan()
    assert batch is not None
    made.commit([RowOutcome(chunk.slot) for chunk in batch.chunks])
    layout = made.seating.layout()
    (row,) = layout.seated
    assert (row.id, row.user, row.prompt_len, row.computed, row.num_tokens, row.limit) == (
        "a",
        "u",
        10,
        8,
        10,
        16,
    )
    assert (layout.max_rows, layout.page_size) == (3, 4)
    assert {page for page, state in enumerate(layout.pages) if state == USED} == {0, *row.pages}
    made.cancel("a")
    layout = made.seating.layout()
    assert layout.seated == () and counts(layout) == {CACHED: 2, FREE: 17}


async def test_an_engine_is_asked_and_answers_at_the_next_look() -> None:
    script = Script(reply=[Reply(text="tick " * 100, token_s=0.01)])
    engine = DynamicEngine(ScriptedBackend(script), EngineConfig(max_rows=2))
    assert engine.layout() is None
    async with engine:
        await engine.submit("hello", SamplingParams(max_tokens=100), response_id="r1")
        async with asyncio.timeout(60):
            while True:
                layout = engine.layout()
                if layout is not None and layout.seated:
                    break
                await asyncio.sleep(0.002)
        assert [row.id for row in layout.seated] == ["r1"] and layout.max_rows == 2
