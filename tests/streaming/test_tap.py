"""Deltas that go straight from a log to a socket are those that the encoder makes of its events."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jitney.runtime.events import Event, Usage
from jitney.runtime.log import Log
from jitney.runtime.testing import ByteTokenizer
from jitney.runtime.text.detokenizer import LazyBytes
from jitney.runtime.text.pieces import Pieces
from jitney.streaming.entry import Entry
from jitney.streaming.line import Line, Outbox
from jitney.streaming.principal import ANONYMOUS
from jitney.streaming.protocols.delivery import FINISH
from jitney.streaming.protocols.responses import Facts
from jitney.streaming.reader import Reader

TEXTS = ["He", 'l"l\\o', "\n", "é😀", "\x00\u2028", " w"]
PIECES = Pieces(LazyBytes(lambda token_id: TEXTS[token_id].encode()))


class Gate(Line):
    """Keeps the frames that are put, and has room while the test says so."""

    def __init__(self) -> None:
        super().__init__(Outbox())
        self.frames: list[bytes] = []

    def put_frame(self, payload: bytes) -> None:
        assert self.has_room
        self.frames.append(payload)


async def sent(
    rng: random.Random, tells: list[Any], lane: str | None, after: int, *, tapped: bool
) -> list[Any]:
    """What a client gets of a log to which this is told, some of it while its socket has no room."""
    log, line = Log("resp_1"), Gate()
    response: Any = SimpleNamespace(log=log, request=SimpleNamespace(prompt=(), n=1), done=False)
    entry = Entry("resp_1", ANONYMOUS, FINISH, facts=Facts(model="m", created_at=7.0))
    entry.settle([response])
    reader = Reader(entry, ByteTokenizer(), stream_id=lane, after=after)

    async def follow() -> None:
        async for batch in reader.frames(line if tapped else None):
            line.frames += batch

    task: asyncio.Task[None] | None = None
    for tell in tells:
        log.append(tell) if isinstance(tell, Event) else log.extend(tell)
        if task is None and log.last_seq >= after:
            task = asyncio.create_task(follow())
        line.has_room = rng.random() < 0.9
        for _ in range(rng.choice([0, 3])):
            await asyncio.sleep(0)
    assert task is not None
    await task
    return [msgspec.json.decode(frame) for frame in line.frames]


def told(rng: random.Random) -> list[Any]:
    """Of an answer: pieces by one and by several, and here and there a delta that is none."""
    tells: list[Any] = []
    seq = 0
    for _ in range(40):
        tokens = tuple(rng.randrange(len(TEXTS)) for _ in range(rng.choice([1, 1, 1, 3])))
        tells.append(
            Event("resp_1", seq + 1, "delta", 0, "😀", (9, 9)) if rng.random() < 0.1 else PIECES[tokens]
        )
        seq += 1 if isinstance(tells[-1], Event) else len(tokens)
    tells.append(Event("resp_1", seq + 1, "finish", 0, "!", (1,), finish_reason="length"))
    tells.append(Event("resp_1", seq + 2, "done", finish_reason="length", usage=Usage(0, seq + 1)))
    return tells


def story(frames: list[Any]) -> Any:
    """All that does not hang on how deltas were merged."""
    rest = [frame for frame in frames if "delta" not in frame]
    last = rest[-1]["response"]["jitney"].pop("merged_deltas")
    deltas = [frame for frame in frames if "delta" in frame]
    assert all(frame.keys() == deltas[0].keys() for frame in deltas)
    places = {(frame["type"], frame["item_id"], frame.get("stream_id")) for frame in deltas}
    text = "".join(frame["delta"] for frame in deltas)
    assert [f["sequence_number"] for f in frames] == sorted({f["sequence_number"] for f in frames})
    return rest, text, places, last + len(deltas)


@pytest.mark.parametrize("seed", range(40))
async def test_a_socket_gets_what_the_encoder_makes_of_the_log(seed: int) -> None:
    rng = random.Random(seed)
    tells, lane = told(rng), rng.choice([None, 'a "lane" é'])
    after = rng.choice([-1, -1, 20])
    straight, by_tap = [await sent(rng, tells, lane, after, tapped=tapped) for tapped in (False, True)]
    assert story(by_tap) == story(straight)


async def test_each_delta_of_a_socket_with_room_is_sent_as_it_comes() -> None:
    tells: list[Any] = [PIECES[(0,)], PIECES[(1,)], PIECES[(2, 3)]]
    tells.append(Event("resp_1", 5, "finish", finish_reason="length"))
    tells.append(Event("resp_1", 6, "done", finish_reason="length"))
    steady: Any = SimpleNamespace(random=lambda: 0.0, choice=max)
    frames = await sent(steady, tells, None, -1, tapped=True)
    deltas = [(frame["sequence_number"], frame["delta"]) for frame in frames if "delta" in frame]
    assert deltas == [(5, "He"), (6, 'l"l\\o'), (8, "\né😀")]
    assert frames[-1]["response"]["jitney"]["merged_deltas"] == 1
