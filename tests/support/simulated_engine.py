"""A whole engine in simulated time, with clients: queue, scheduler, worker's turn, responses and logs; a device that
is late, stalls and raises; readers that cancel, leave, come back and run out of time. Everything from one seed."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from books import check_books
from simulated_loop import SimulatedLoop, run_simulated, simulated_worker

from jitney.runtime import DynamicEngine, EngineConfig, Event, SamplingParams
from jitney.runtime.backend import GenerationDefaults
from jitney.runtime.batch import Batch, Capacity
from jitney.runtime.engines import dynamic
from jitney.runtime.errors import EngineDied, QueueFull
from jitney.runtime.stats import Stats
from jitney.runtime.testing import ByteTokenizer, RowView, ScriptedStep, chain

CONTEXT = 96
LETTERS = b"abcdefgh"


def letter(state: int, seed: int, choice: int, length: int) -> int:
    """A byte of text, or the end, from all that a token depends on."""
    mixed = chain(chain(chain(state, seed), choice), length)
    return 256 if mixed % 23 == 0 else LETTERS[mixed % len(LETTERS)]


def next_letter(row: RowView) -> int:
    sampling = row.seat.sampling
    return letter(row.state, sampling.seed, sampling.choice, len(row.tokens))


def solo_text(prompt: str, params: SamplingParams, choice: int) -> str:
    """The naive twin: the definition alone, then the whole text searched for the stop strings."""
    tokens, state = list(prompt.encode()), 0
    for token in tokens:
        state = chain(state, token)
    text = ""
    limit = params.max_tokens or CONTEXT - len(tokens)
    for _ in range(limit):
        token = letter(state, params.seed or 0, choice, len(tokens))
        if token == 256:
            break
        text += chr(token)
        found = [text.index(stop) for stop in params.stops if stop in text]
        if found:
            return text[: min(found)]
        tokens.append(token)
        state = chain(state, token)
    return text


class SimulatedBackend:
    """A byte model over a scripted step that raises now and then."""

    name = "simulated"
    context_length = CONTEXT

    def __init__(self, rng: random.Random, capacity: Capacity, fault_rate: float = 0.0) -> None:
        self.tokenizer = ByteTokenizer()
        self.vocab_size = self.tokenizer.vocab_size
        self.defaults = GenerationDefaults(end_token_ids=(256,))
        self._rng = rng
        self._capacity = capacity
        self._fault_rate = fault_rate

    def open_step(self, config: EngineConfig) -> ScriptedStep:
        return ScriptedStep(self._capacity, next_letter, before=self._maybe_raise, after=self._maybe_raise)

    def _maybe_raise(self, batch: Batch | None = None) -> None:
        if self._rng.random() < self._fault_rate:
            raise RuntimeError("simulated fault")


def params_of(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        seed=rng.getrandbits(64),
        max_tokens=rng.randint(1, 40),
        n=rng.choice([1, 1, 1, 2, 3]),
        stop=rng.sample(["ab", "ha", "cde", "gg"], rng.randrange(3)) or None,
    )


class Client:
    """Sends one request and reads it in its own way; remembers everything it was shown."""

    def __init__(
        self, rng: random.Random, engine: DynamicEngine, cancel_rate: float, spread_s: float
    ) -> None:
        shared = "the same beginning of a prompt " if rng.random() < 0.5 else ""
        self.prompt = (shared + "".join(rng.choices("xyz ", k=rng.randint(1, 20))))[:50]
        self.params = params_of(rng)
        self.texts = [""] * self.params.n
        self.reasons: list[str | None] = [None] * self.params.n
        self.done: list[Event] = []
        self._rng, self._engine, self._cancel_rate, self._spread_s = rng, engine, cancel_rate, spread_s

    async def run(self) -> None:
        rng = self._rng
        await asyncio.sleep(rng.uniform(0, self._spread_s))
        options = dict(
            priority=rng.choice([0, 0, 1]), user=rng.choice("abc"), cache_salt=rng.choice(["", "t"])
        )
        if rng.random() < 0.15:
            options["deadline_s"] = rng.uniform(0.01, 4)
        try:
            response = await self._engine.submit(self.prompt, self.params, **options)
        except (QueueFull, EngineDied):
            return
        if rng.random() < self._cancel_rate:
            asyncio.get_running_loop().call_later(rng.uniform(0, 4), response.cancel)
        after = 0
        while not self.done:
            async for event in response.events(after):
                assert event.seq > after
                after = event.seq
                self._see(event)
                if rng.random() < 0.05:
                    break  # the connection drops; come back where we left
                if rng.random() < 0.1:
                    await asyncio.sleep(rng.uniform(0, 0.5))  # a slow reader

    def _see(self, event: Event) -> None:
        assert not self.done, "an event after the terminal one"
        if event.kind == "done":
            self.done.append(event)
            return
        assert self.reasons[event.index] is None, "an event after its choice's finish"
        self.texts[event.index] += event.text
        self.reasons[event.index] = event.finish_reason

    def check(self) -> None:
        if not self.done:
            return
        for choice, (text, reason) in enumerate(zip(self.texts, self.reasons, strict=True)):
            whole = solo_text(self.prompt, self.params, choice)
            assert reason is not None
            if reason in ("length", "stop_token", "stop_string"):
                assert text == whole, (self.prompt, self.params, choice)
            else:  # cut off, perhaps inside what might have become a stop string
                endless = solo_text(self.prompt, msgspec.structs.replace(self.params, stop=None), choice)
                assert endless.startswith(text), (self.prompt, self.params, choice, reason)
                assert not any(stop in text for stop in self.params.stops)


def serve(
    rng: random.Random,
    backend: SimulatedBackend,
    config: EngineConfig,
    num_clients: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cancel_rate: float = 0.4,
    spread_s: float = 3.0,
) -> tuple[list[Client], Stats]:
    """Serve the clients and drain; the books are checked after every turn, and everything is given back at the end."""
    monkeypatch.setattr(dynamic, "Worker", simulated_worker(rng, lambda steps: check_books(steps.scheduler)))

    async def main(loop: SimulatedLoop) -> tuple[list[Client], Stats]:
        async with DynamicEngine(backend, config, clock=loop.time) as engine:
            clients = [Client(rng, engine, cancel_rate, spread_s) for _ in range(num_clients)]
            async with asyncio.timeout(100_000):
                await asyncio.gather(*(client.run() for client in clients))
                await engine.drain()
            await check_empty(engine)
            return clients, engine.stats()

    clients, stats = run_simulated(main)
    for client in clients:
        client.check()
    return clients, stats


async def check_empty(engine: DynamicEngine) -> None:
    """Within a few turns every seat and page is back, unless a stall was taken for death."""
    for _ in range(100):
        stats = engine.stats()
        if engine.state == "dead" or stats.running == stats.waiting == stats.kv_pages_used == 0:
            return
        await asyncio.sleep(60)
    raise AssertionError(f"still held: {engine.stats()}")
