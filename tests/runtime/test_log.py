"""The log: append, seal, several cursors, resume, and the merging that a lagging cursor gets."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Sequence

import pytest

from jitney.runtime.batch import TokenLogprobs
from jitney.runtime.events import Event
from jitney.runtime.log import Log, merged
from jitney.runtime.text.pieces import Piece


def delta(seq: int, text: str = "x", index: int = 0, logprobs: bool = False) -> Event:
    scores = (TokenLogprobs(seq, -float(seq)),) if logprobs else None
    return Event("r", seq, "delta", index=index, text=text, token_ids=(seq,), logprobs=scores)


def finish(seq: int, index: int = 0) -> Event:
    return Event("r", seq, "finish", index=index, text="!", token_ids=(seq,), finish_reason="length")


def done(seq: int) -> Event:
    return Event("r", seq, "done", finish_reason="length")


def filled(*events: Event) -> Log:
    log = Log("r")
    for event in events:
        assert log.append(event)
    return log


async def read_all(log: Log, after: int = 0) -> list[Event]:
    return [event async for event in log.follow(after)]


def test_done_seals_and_what_comes_later_is_counted() -> None:
    log = filled(delta(1), done(2))
    assert log.is_sealed
    assert not log.append(delta(3)) and not log.append(done(3))
    assert log.num_discarded == 2
    assert log.last == done(2) and log.last_seq == 2


def test_a_gap_in_the_numbers_is_our_own_fault() -> None:
    with pytest.raises(AssertionError):
        filled(delta(2))


def test_bytes_grow_with_what_is_kept() -> None:
    def size(event: Event) -> int:
        return filled(event).num_bytes

    assert size(delta(1, "x" * 1000)) > size(delta(1)) + 900
    assert size(delta(1, logprobs=True)) > size(delta(1))
    scored = Event(
        "r", 1, "prompt", prompt_logprobs=(None, *[TokenLogprobs(1, -1.0, ((1, -1.0),) * 20)] * 100)
    )
    assert size(scored) > 100 * 20 * 16


async def test_a_reader_that_keeps_up_gets_every_event_as_it_was() -> None:
    log = Log("r")
    events = log.follow()
    for event in [delta(1), delta(2), finish(3), done(4)]:
        reader = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        log.append(event)
        assert await reader == event
    assert await anext(events, None) is None


async def test_a_lagging_reader_gets_the_deltas_it_missed_as_one() -> None:
    log = filled(delta(1, "a", logprobs=True), delta(2, "b", logprobs=True), finish(3), done(4))
    got = await read_all(log)
    assert [event.seq for event in got] == [2, 3, 4]
    assert got[0].text == "ab" and got[0].token_ids == (1, 2)
    assert got[0].logprobs == (TokenLogprobs(1, -1.0), TokenLogprobs(2, -2.0))


async def test_a_reader_that_lags_behind_a_live_log_catches_up_merged() -> None:
    log = filled(delta(1, "a"))
    events = log.follow()
    assert (await anext(events)).text == "a"
    for seq in range(2, 50):
        log.append(delta(seq, "b"))
    assert (await anext(events)).text == "b" * 48
    log.append(done(50))
    assert (await anext(events)).kind == "done"
    assert await anext(events, None) is None


def test_only_neighbouring_deltas_of_one_choice_are_merged() -> None:
    story = [delta(1, "a", 0), delta(2, "b", 1), delta(3, "c", 1), finish(4, 1), delta(5, "d", 0), done(6)]
    assert [(e.seq, e.index, e.text) for e in merged(story)] == [
        (1, 0, "a"),
        (3, 1, "bc"),
        (4, 1, "!"),
        (5, 0, "d"),
        (6, 0, ""),
    ]


def story_of(rng: random.Random) -> list[Event]:
    open_choices = list(range(rng.randint(1, 3)))
    events: list[Event] = []
    while open_choices:
        index = rng.choice(open_choices)
        if rng.random() < 0.1:
            open_choices.remove(index)
            events.append(finish(len(events) + 1, index))
        else:
            events.append(delta(len(events) + 1, rng.choice(["", "a", "bc"]), index))
    return [*events, done(len(events) + 1)]


def content(events: list[Event]) -> dict[int, tuple[str, tuple[int, ...]]]:
    told: dict[int, tuple[str, tuple[int, ...]]] = {}
    for event in events:
        text, ids = told.get(event.index, ("", ()))
        told[event.index] = (text + event.text, ids + event.token_ids)
    return told


@pytest.mark.parametrize("seed", range(30))
async def test_resuming_behind_any_number_gives_the_rest_and_cursors_do_not_disturb_each_other(
    seed: int,
) -> None:
    rng = random.Random(seed)
    story = story_of(rng)
    log = Log("r")
    readers = []
    for event in story:
        if rng.random() < 0.2:
            after = rng.randint(0, log.last_seq)
            readers.append((after, asyncio.create_task(read_all(log, after))))
        log.append(event)
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    readers += [(after, asyncio.create_task(read_all(log, after))) for after in range(log.last_seq + 1)]
    for after, reader in readers:
        got = await reader
        assert content(got) == content(story[after:])
        assert [e for e in got if e.kind != "delta"] == [e for e in story[after:] if e.kind != "delta"]
        assert [e.seq for e in got] == sorted({e.seq for e in got})


async def test_a_reader_that_resumes_at_a_merged_events_number_misses_and_repeats_nothing() -> None:
    log = filled(*(delta(seq, chr(96 + seq)) for seq in range(1, 6)), done(6))
    first = await anext(log.follow())
    rest = await read_all(log, first.seq)
    assert first.text + "".join(event.text for event in rest) == "abcde"


async def test_a_number_before_the_beginning_means_the_beginning() -> None:
    log = filled(delta(1), delta(2), done(3))
    assert await read_all(log, -1) == await read_all(log)
    assert await read_all(log, 99) == []


async def test_leaving_early_leaves_no_waiter() -> None:
    log = filled(delta(1))
    events = log.follow()
    await anext(events)
    waiting = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not log._readers


async def test_waiting_for_the_seal() -> None:
    log = filled(delta(1))
    waiting = asyncio.create_task(log.wait_sealed())
    await asyncio.sleep(0)
    log.append(delta(2))
    await asyncio.sleep(0)
    assert not waiting.done()
    log.append(done(3))
    await waiting
    await log.wait_sealed()


async def test_waiting_for_the_seal_costs_an_entry_nothing() -> None:
    def num_calls(log: Log) -> int:
        calls: list[str] = []
        sys.setprofile(lambda frame, kind, _: calls.append(kind) if kind == "call" else None)
        try:
            log.append(delta(2))
        finally:
            sys.setprofile(None)
        return len(calls)

    alone, waited_for = filled(delta(1)), filled(delta(1))
    waiting = asyncio.create_task(waited_for.wait_sealed())
    await asyncio.sleep(0)
    assert num_calls(waited_for) == num_calls(alone)
    waited_for.append(done(3))
    await waiting


async def test_who_follows_is_told_of_the_end_before_who_waits_for_it() -> None:
    log, told = filled(delta(1)), []

    async def wait() -> None:
        await log.wait_sealed()
        told.append("sealed")

    async def follow() -> None:
        told.extend([event.kind async for event in log.follow(1)])

    tasks = [asyncio.create_task(wait()), asyncio.create_task(follow())]
    await asyncio.sleep(0)
    log.append(done(2))
    await asyncio.gather(*tasks)
    assert told == ["done", "sealed"]


def piece(text: str) -> Piece:
    return Piece(tuple(text.encode()[:1]), text, json.dumps(text)[1:-1].encode())


A, B, C = map(piece, "abc")


def test_pieces_are_read_as_deltas_and_cost_next_to_nothing() -> None:
    log = filled(delta(1))
    before = log.num_bytes
    log.extend([A, B])
    log.extend([A])
    assert log.last_seq == 4 and log.num_bytes == before + 3 * 8
    assert log.read(0) == [
        delta(1),
        Event("r", 2, "delta", 0, "a", (97,)),
        Event("r", 3, "delta", 0, "b", (98,)),
        Event("r", 4, "delta", 0, "a", (97,)),
    ]
    assert log.read(2) == log.read(0)[2:] and log.last == log.read(0)[-1]
    assert log.text(0, 4) == "xaba" and log.text(1, 3) == "ab"
    assert [(event.seq, event.text) for event in merged(log.read(0))] == [(4, "xaba")]


async def test_pieces_that_are_taken_wake_nobody() -> None:
    log, taken = filled(delta(1)), []

    def take(pieces: Sequence[Piece], seq: int) -> bool:
        taken.append(("".join(piece.text for piece in pieces), seq))
        return seq < 5

    waiting = asyncio.create_task(log.news(take))
    await asyncio.sleep(0)
    log.extend([A])
    log.extend([B, C])
    await asyncio.sleep(0)
    assert taken == [("a", 2), ("bc", 4)] and not waiting.done()
    log.extend([A])
    log.extend([B])
    await waiting
    assert taken == [("a", 2), ("bc", 4), ("a", 5)], "who is to be woken takes no more until it has caught up"


async def test_an_event_is_not_taken() -> None:
    log, taken = filled(delta(1)), []
    waiting = asyncio.create_task(log.news(lambda pieces, seq: bool(taken.append(seq)) or True))
    await asyncio.sleep(0)
    log.append(finish(2))
    log.extend([A])
    await waiting
    assert not taken


async def test_of_several_readers_none_takes() -> None:
    log, taken = filled(delta(1)), []

    def take(pieces: Sequence[Piece], seq: int) -> bool:
        taken.append(seq)
        return True

    first, second = asyncio.create_task(log.news(take)), asyncio.create_task(log.news(take))
    await asyncio.sleep(0)
    log.extend([A])
    await asyncio.gather(first, second)
    assert not taken and not log._readers
    third = asyncio.create_task(log.news(take))
    await asyncio.sleep(0)
    log.extend([A])
    assert taken == [3]
    third.cancel()
    await asyncio.wait({third})
    log.extend([A])
    assert taken == [3] and not log._readers


async def test_what_a_reader_raises_is_its_own_affair() -> None:
    log = filled(delta(1))

    def fail(pieces: Sequence[Piece], seq: int) -> bool:
        raise ValueError("a reader")

    failing = asyncio.create_task(log.news(fail))
    await asyncio.sleep(0)
    log.extend([A])
    log.extend([B])
    with pytest.raises(ValueError, match="a reader"):
        await failing
    assert log.last_seq == 3 and not log._readers


@pytest.mark.parametrize("raises", [False, True])
async def test_a_reader_that_leaves_as_it_takes_breaks_nothing_off(raises: bool) -> None:
    log = filled(delta(1))

    def leave(pieces: Sequence[Piece], seq: int) -> bool:
        leaving.cancel()
        if raises:
            raise ValueError("on its way out")
        return False

    leaving = asyncio.create_task(log.news(leave))
    await asyncio.sleep(0)
    log.extend([A])
    await asyncio.wait({leaving})
    assert leaving.cancelled() and log.append(done(3)) and not log._readers


async def test_a_log_is_sealed_when_its_readers_hear_the_end() -> None:
    log = filled(delta(1))
    waiting = asyncio.create_task(log.news())
    await asyncio.sleep(0)
    log.append(done(2))
    await waiting
    assert log.is_sealed and not log.append(done(3)) and log.num_discarded == 1
