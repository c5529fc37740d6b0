"""A whole engine side in simulated time: queue, scheduler, step loop and logs without threads, from one seed.

The simulated device may be late, stall, or raise; requests come, are cancelled and expire at random points. After
each turn the books are checked. The device's KV cache is a hash chain (see `ScriptedStep`), so any page that is
shared, reused or published wrongly shows as a wrong token.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from books import check_books
from spelled import spelled

from jitney.runtime.batch import Batch, Capacity, RowSampling
from jitney.runtime.messages import Cancel, Generate, Output
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.testing import RowView, ScriptedStep, chain
from jitney.runtime.worker import StepLoop

VOCAB = 50
END = 0


def sampled(row: RowView) -> int:
    """A token that depends on everything that a real one depends on: the KV, the seed, the choice, the position."""
    sampling = row.seat.sampling
    mixed = chain(chain(chain(row.state, sampling.seed), sampling.choice), len(row.tokens))
    token = mixed % VOCAB
    return token if row.num_generated >= sampling.min_tokens else max(1, token)


def solo(request: Generate, choice: int = 0) -> list[int]:
    """The naive twin: what a row gives with nothing around it, from the definition of `sampled` alone."""
    tokens, state = list(request.prompt), 0
    for token in tokens:
        state = chain(state, token)
    generated: list[int] = []
    while len(generated) < request.max_tokens:
        mixed = chain(chain(chain(state, request.sampling.seed), choice), len(tokens))
        token = mixed % VOCAB
        token = token if len(generated) >= request.sampling.min_tokens else max(1, token)
        generated.append(token)
        tokens.append(token)
        state = chain(state, token)
        if token in request.sampling.end_token_ids:
            break
    return generated


@dataclass
class Story:
    """What the loop was told of one choice."""

    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    num_terminals: int = 0


class Simulation:
    """`feed` requests, `turn` until idle; `stories` tells what came out."""

    def __init__(self, capacity: Capacity, *, max_batch_tokens: int, prefix_cache: bool = True) -> None:
        self.now = 0.0
        self.fault: Callable[[], None] = lambda: None
        self.scheduler = Scheduler(
            capacity, max_batch_tokens=max_batch_tokens, prefix_cache=prefix_cache, secret=b"simulated"
        )
        self.step = ScriptedStep(
            capacity, sampled, before=lambda batch: self.fault(), after=lambda: self.fault()
        )
        self.loop = StepLoop(self.step, self.scheduler)
        self.requests: dict[str, Generate] = {}
        self.stories: dict[tuple[str, int], Story] = {}
        self.cancelled: set[str] = set()
        self.batches: list[Batch] = []

    def feed(self, request: Generate) -> None:
        self.requests[request.id] = request
        for choice in range(request.n):
            self.stories[request.id, choice] = Story()
        self.loop.obey(request)

    def cancel(self, request_id: str) -> None:
        """As the engine does: the loop's log is sealed first, the worker hears of it between two turns."""
        self.cancelled.add(request_id)
        for (owner, _), story in self.stories.items():
            if owner == request_id and story.reason is None:
                story.reason, story.num_terminals = "cancelled", story.num_terminals + 1
        self.loop.obey(Cancel(request_id))

    def turn(self) -> bool:
        outputs = self.loop.turn(self.now)
        for output in spelled(outputs or ()):
            self._hear(output)
        check_books(self.scheduler)
        return outputs is not None

    def run(self, max_turns: int = 1_000_000) -> None:
        for _ in range(max_turns):
            if self.loop.is_idle:
                return
            assert self.turn(), "not idle, and nothing can advance: a hang"
        raise AssertionError("still busy: a hang")

    def check_ended(self) -> None:
        """Nothing leaked, every choice has exactly one end, and whole answers are those of a solo run."""
        assert self.scheduler.stats().pages_used == 0
        assert self.scheduler.stats().free_rows == self.scheduler.capacity.max_rows
        for (request_id, choice), story in self.stories.items():
            assert story.num_terminals == 1, (request_id, choice, story)
            expected = solo(self.requests[request_id], choice)
            if story.reason in ("length", "stop_token"):
                assert story.tokens == expected, (request_id, choice)
            else:
                assert story.tokens == expected[: len(story.tokens)], (request_id, choice)

    def _hear(self, output: Output) -> None:
        story = self.stories[output.id, output.choice]
        if story.reason is not None:
            assert output.id in self.cancelled, "an output after the end"
            return
        story.tokens += output.tokens
        if output.finish_reason is not None:
            story.reason, story.num_terminals = output.finish_reason, story.num_terminals + 1


def random_request(
    rng: random.Random, index: int, *, context: int, now: float, deadline: bool = False
) -> Generate:
    """Lengths, samplers, n, stops, priorities, users, salts and (with `deadline`) deadlines at random; half of the
    prompts share a beginning with others."""
    family = rng.randrange(4)
    shared = [chain(family, i) % VOCAB for i in range(rng.choice([0, 0, 7, 16, 40]))]
    prompt = shared + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 24))]
    prompt = prompt[: context - 1]
    max_tokens = rng.randint(1, min(40, context - len(prompt)))
    return Generate(
        id=f"r{index}",
        prompt=tuple(prompt),
        sampling=RowSampling(
            seed=rng.getrandbits(64),
            end_token_ids=(END, 7)[: rng.randrange(3)],
            min_tokens=rng.choice([0, 0, 3]) if max_tokens > 3 else 0,
        ),
        n=rng.choice([1, 1, 1, 2, 3]),
        max_tokens=max_tokens,
        priority=rng.choice([0, 0, 1, 5]),
        user=rng.choice("abc"),
        arrival=now + index * 1e-6,
        deadline=now + rng.uniform(0.05, 3.0) if deadline and rng.random() < 0.2 else None,
        salt=rng.choice([b"", b"", b"t1", b"t2"]),
        use_prefix_cache=rng.random() < 0.9,
    )
