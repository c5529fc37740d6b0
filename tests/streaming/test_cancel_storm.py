"""Answers cancelled by every route there is, at any moment, in simulated time: no later plan names them, and every
page is back when the launches in flight are done."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from asgi_clients import Exchange, Socket, ask
from books import check_books
from simulated_engine import CONTEXT, SimulatedBackend, check_empty
from simulated_loop import SimulatedLoop, run_simulated, simulated_worker

from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams
from jitney.runtime.batch import Batch, Capacity
from jitney.runtime.engines import dynamic
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.worker import StepLoop
from jitney.streaming import create_app

ENDS = ("response.completed", "response.incomplete", "response.failed")
LEAVE = {"on_disconnect": "cancel"}


class Watch:
    """Looks at every plan: it names no request that was cancelled before it was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cancelled: set[str] = set()
        self.states: Counter[str] = Counter()
        plan, cancel = Scheduler.plan, Scheduler.cancel
        watch = self

        def watched_plan(self: Scheduler) -> Batch | None:
            batch = plan(self)
            if batch is not None:
                seated = {row.slot: row.request.id for row in self._roster.running}
                named = {seated[slot] for slot in (*batch.decodes, *(chunk.slot for chunk in batch.chunks))}
                assert not named & watch.cancelled
            return batch

        def watched_cancel(self: Scheduler, request_id: str, choice: int | None = None) -> None:
            for row in self._roster.find(request_id)[:1]:
                state = "waiting" if row.slot < 0 else "decoding" if row.decoding else "prefilling"
                watch.states[state] += 1
            cancel(self, request_id, choice)
            if choice is None:
                watch.cancelled.add(request_id)

        monkeypatch.setattr(Scheduler, "plan", watched_plan)
        monkeypatch.setattr(Scheduler, "cancel", watched_cancel)


class Guest:
    """Asks for a long answer, and has it cancelled in its own way after a while."""

    def __init__(self, engine: DynamicEngine, app: Any, rng: random.Random) -> None:
        self._engine, self._app, self._rng = engine, app, rng
        self._text = "".join(rng.choices("xyz ", k=rng.randint(1, 80)))
        self.wait_s = rng.choice([0.0, rng.uniform(0, 0.01), rng.uniform(0, 2)])

    async def run(self) -> None:
        ways = [self._by_frame, self._by_lane, self._over_http, self._by_delete, self._by_leaving]
        ways += [self._by_hanging_up, self._by_task]
        await self._rng.choice(ways)()

    async def _pause(self) -> None:
        await asyncio.sleep(self.wait_s)

    def _body(self) -> dict[str, Any]:
        return {"input": self._text, "ignore_eos": True}

    async def _begun(self, socket: Socket, **fields: Any) -> str:
        socket.send(type="response.create", **self._body(), **fields)
        created = await socket.recv()
        assert created["type"] in ("response.created", "response.queued"), created
        await self._pause()
        return str(created["response"]["id"])

    async def _ended(self, socket: Socket) -> None:
        while (await socket.recv())["type"] not in ENDS:
            pass

    async def _by_frame(self) -> None:
        async with Socket(self._app) as socket:
            response_id = await self._begun(socket)
            if self._rng.random() < 0.5:
                socket.send(type="response.cancel", response_id=response_id)
                return await self._ended(socket)
            async with Socket(self._app) as other:
                other.send(type="response.cancel", response_id=response_id)
                await self._ended(other)

    async def _by_lane(self) -> None:
        async with Socket(self._app) as socket:
            for lane in ("a", "a", "b"):
                socket.send(type="response.create", stream_id=lane, **self._body())
            await self._pause()
            for lane in ("a", "a", "b"):
                socket.send(type="response.cancel", stream_id=lane)
            for _ in range(3):
                await self._ended(socket)

    async def _over_http(self) -> None:
        async with Socket(self._app) as socket:
            response_id = await self._begun(socket)
        status, answer = await ask(self._app, "POST", f"/v1/responses/{response_id}/cancel")
        assert status == 200 and answer["status"] in ("cancelled", "incomplete"), answer

    async def _by_delete(self) -> None:
        async with Socket(self._app) as socket:
            response_id = await self._begun(socket)
            status, answer = await ask(self._app, "DELETE", f"/v1/responses/{response_id}")
            assert status == 200 and answer["deleted"]

    async def _by_leaving(self) -> None:
        async with Socket(self._app) as socket:
            for lane in "abb":
                socket.send(type="response.create", stream_id=lane, jitney=LEAVE, **self._body())
            await self._pause()

    async def _by_hanging_up(self) -> None:
        path, chat = "/v1/chat/completions", [{"role": "user", "content": self._text}]
        body = {"messages": chat, "stream": True, "ignore_eos": True, "n": self._rng.choice([1, 2])}
        async with Exchange(self._app, "POST", path, body) as exchange:
            assert exchange.status == 200
            await self._pause()

    async def _by_task(self) -> None:
        async def read() -> None:
            async for _ in self._engine.stream(self._text[:60], SamplingParams(ignore_eos=True)):
                pass

        task = asyncio.create_task(read())
        await self._pause()
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.parametrize(("count", "depth"), [(5000, 0), (5000, 2)])
def test_cancelled_by_any_route(count: int, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(count + depth)
    watch = Watch(monkeypatch)
    backend = SimulatedBackend(rng, Capacity(num_pages=3 * CONTEXT, page_size=4, max_rows=16, depth=depth))
    config = EngineConfig(
        max_batch_tokens=16,
        max_queued=100_000,
        step_timeout_s=1e6,
        keep_finished_s=20,
        tune_process=False,
    )

    def check(steps: StepLoop) -> None:
        check_books(steps.scheduler)

    monkeypatch.setattr(dynamic, "Worker", simulated_worker(rng, check))

    async def main(loop: SimulatedLoop) -> Counter[str]:
        async with DynamicEngine(backend, config, clock=loop.time) as engine:
            app = create_app(engine)

            async def visit(guest: Guest) -> None:
                await asyncio.sleep(rng.uniform(0, count / 10))
                await guest.run()

            async with asyncio.timeout(10_000):
                await asyncio.gather(*(visit(Guest(engine, app, rng)) for _ in range(count)))
                await engine.drain()
            await check_empty(engine)
            return Counter(engine.stats().finished)

    finished = run_simulated(main)
    assert set(finished) <= {"cancelled", "length"}
    assert finished["cancelled"] > count * 0.8
    assert min(watch.states[state] for state in ("waiting", "prefilling", "decoding")) > count / 50
