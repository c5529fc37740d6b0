"""The loop's side of an engine, fed by hand: what is told is the same however many reports are taken in at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jitney.runtime.backend import Detokenizer, Tokenizer
from jitney.runtime.batch import Capacity, RowSampling, TokenLogprobs
from jitney.runtime.config import EngineConfig
from jitney.runtime.dispatcher import Dispatcher
from jitney.runtime.inbox import Inbox
from jitney.runtime.messages import Advance, Cancel, Generate, Output, Report, SchedulerStats
from jitney.runtime.observer import Gain
from jitney.runtime.params import SamplingParams
from jitney.runtime.portions import Portions
from jitney.runtime.response import Response
from jitney.runtime.testing.byte_tokenizer import END, ByteTokenizer

PIECES = list("abab ") + ["é", "😀", "ST", "OP"]


class Bill:
    """Observes what each response is charged for."""

    def __init__(self) -> None:
        self.charged: Counter[str] = Counter()
        self.gaps: defaultdict[str, list[float]] = defaultdict(list)
        self.num_ended = 0

    def advanced(self, gains: Sequence[Gain]) -> None:
        assert gains
        for gain in gains:
            assert gain.num_tokens > 0 and gain.is_first == (gain.response.id not in self.charged)
            assert all(gap_s >= 0 for gap_s in gain.gaps)
            self.charged[gain.response.id] += gain.num_tokens
            self.gaps[gain.response.id] += gain.gaps

    def ended(self, response: Response) -> None:
        """All that it gained has been told by then."""
        assert self.charged[response.id] == response.usage().completion_tokens
        times = response.log.last.times
        assert times is not None and times.gap_p99_s == (max(self.gaps[response.id], default=None))
        self.num_ended += 1


def params_of(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        n=rng.choice([1, 1, 2, 3]),
        stop=rng.choice([None, ["STOP"], ["ba", "a é"]]),
        stream_interval=rng.choice([1, 1, 3]),
        logprobs=rng.choice([None, None, 0]),
        min_tokens=rng.choice([0, 0, 7]),
    )


def rows_of(rng: random.Random, asked: dict[str, SamplingParams]) -> dict[tuple[str, int], list[Output]]:
    """What the worker says of each choice, a token at a time, to its end; it knows nothing of stop strings."""
    rows: dict[tuple[str, int], list[Output]] = {}
    for name, params in asked.items():
        for choice in range(params.n):
            tokens = list("".join(rng.choice(PIECES) for _ in range(rng.randint(1, 20))).encode())
            ending = rng.choice(["length", "stop_token", "deadline"])
            row = [Output(name, choice, (token,)) for token in tokens]
            if params.logprobs is not None:
                row = [msgspec.structs.replace(o, logprobs=(TokenLogprobs(o.tokens[0], -1.0),)) for o in row]
            if ending == "stop_token":
                row.append(Output(name, choice, (END,), finish_reason="stop_token", matched=END))
            else:
                row[-1] = msgspec.structs.replace(row[-1], finish_reason=ending)
            row[0] = msgspec.structs.replace(row[0], cached_tokens=1)
            rows[name, choice] = row
    return rows


def reports_of(rng: random.Random, rows: dict[tuple[str, int], list[Output]]) -> list[Report]:
    """One step after the other; a plain token may come in a column, and several at once."""
    reports = []
    while rows:
        outputs: list[Output | Advance] = []
        plain: list[tuple[tuple[str, int], int]] = []
        for name in rng.sample(sorted(rows), rng.randint(1, len(rows))):
            output = rows[name].pop(0)
            if output == Output(*name, output.tokens) and rng.random() < 0.8:
                plain.append((name, output.tokens[0]))
            else:
                outputs.append(output)
            if not rows[name]:
                del rows[name]
        if plain:
            outputs.append(Advance([name for name, _ in plain], [(token,) for _, token in plain]))
        reports.append(Report(outputs, SchedulerStats(free_rows=8, received_rows=10**6)))
    return reports


def heard(response: Response) -> list[Any]:
    """The whole of each choice, and the usage; each ends once, and the response after them."""
    *events, done = response.log.read(0)
    assert done.kind == "done" and done.usage == response.usage()
    story: list[Any] = [done.usage]
    for choice in range(response.request.n):
        *deltas, finish = [event for event in events if event.index == choice]
        assert finish.kind == "finish" and all(event.kind == "delta" for event in deltas)
        scores = [score for event in (*deltas, finish) for score in event.logprobs or ()]
        tokens = [token for event in (*deltas, finish) for token in event.token_ids]
        text = "".join(event.text for event in (*deltas, finish))
        story.append((text, tokens, scores, finish.finish_reason, finish.matched))
    return story


class NoPieces(ByteTokenizer):
    """Has each token pushed: the naive twin of telling those that are whole text without it."""

    def detokenizer(self, **options: Any) -> Detokenizer:
        made = super().detokenizer(**options)
        return SimpleNamespace(push=made.push, flush=made.flush)


async def played(
    rng: random.Random,
    lag: float,
    asked: dict[str, SamplingParams],
    reports: list[Report],
    tokenizer: Tokenizer | None = None,
) -> Any:
    """What each choice was told, what was charged, and which rows were cancelled."""
    bill, inbox, now = Bill(), Inbox(), iter(range(10**6))
    clock = lambda: next(now) / 16  # noqa: E731  some reports come before observers are told again
    dispatcher = Dispatcher(EngineConfig(), tokenizer or ByteTokenizer(), inbox, clock, [bill])
    dispatcher.opened(Capacity(100, 4, 64))
    responses = [
        dispatcher.admit(
            Generate(
                id=name, prompt=(1, 2), sampling=RowSampling(seed=0), n=params.n, max_tokens=99, user=name
            ),
            params,
        )
        for name, params in asked.items()
    ]
    portions = Portions(asyncio.get_running_loop(), dispatcher.receive)
    for report in reports:
        portions.post(report)
        for _ in range(0 if rng.random() < lag else 5):
            await asyncio.sleep(0)
    await dispatcher.idle.wait()
    dispatcher.end_all("cancelled")
    assert bill.num_ended == len(asked)
    for response in responses:
        assert bill.charged[response.id] == response.usage().completion_tokens
    cancels = {(each.id, each.choice) for each in inbox.drain(wait=False) if isinstance(each, Cancel)}
    generated = dispatcher.snapshot("serving", 0.0).generated_tokens
    return [heard(response) for response in responses], generated, cancels


@pytest.mark.parametrize("seed", range(60))
async def test_a_loop_that_lags_tells_and_charges_what_one_that_keeps_up_does(seed: int) -> None:
    rng = random.Random(seed)
    asked = {f"r{row}": params_of(rng) for row in range(rng.randint(1, 6))}
    reports = reports_of(rng, rows_of(rng, asked))
    kept_up = await played(rng, 0.0, asked, reports)
    assert await played(rng, 0.0, asked, reports, NoPieces()) == kept_up
    for lag in (0.5, 0.95, 1.0):
        assert await played(rng, lag, asked, reports) == kept_up


async def test_an_id_that_is_used_again_hears_nothing_of_the_answer_that_had_it() -> None:
    """Neither what the worker said before it heard the cancel, nor what waits with news of the new one."""
    inbox = Inbox()
    dispatcher = Dispatcher(EngineConfig(), ByteTokenizer(), inbox, lambda: 0.0)
    dispatcher.opened(Capacity(100, 4, 8))

    def admit(name: str = "mine") -> tuple[Response, str]:
        request = Generate(id=name, prompt=(1,), sampling=RowSampling(seed=0), max_tokens=9)
        response = dispatcher.admit(request, SamplingParams())
        (sent,) = [each for each in inbox.drain(wait=False) if isinstance(each, Generate)]
        return response, sent.id

    def tell(*outputs: Output | Advance, **counters: int) -> None:
        dispatcher.receive(Report([*outputs], SchedulerStats(free_rows=8, **counters)))

    old, first = admit()
    tell(Advance([(first, 0)], [(65,)]), received_rows=1)
    assert dispatcher.cancel("mine") and dispatcher.forget("mine")
    assert [each.id for each in inbox.drain(wait=False) if isinstance(each, Cancel)] == [first]
    new, second = admit()
    assert new.id == "mine" and dispatcher.find("mine") is new and new is not old
    assert admit(second)[1] not in (first, second), "whoever asks for the name that it was given"
    late = Output(first, 0, (66,), finish_reason="stop_token")
    tell(late, Advance([(second, 0)], [(67,)]), received_rows=3, received_cancels=1)
    assert "".join(event.text for event in new.log.read(0)) == "C" and not new.done
    assert dispatcher.cancel("mine") and dispatcher.forget("mine")
    third = admit()[1]
    assert len({first, second, third}) == 2, "the first name is free again, the second is not"
    assert dispatcher.snapshot("ready", 0.0).late_events == 1
    dispatcher.end_all("cancelled")
