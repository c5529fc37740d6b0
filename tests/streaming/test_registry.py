"""What becomes of an answer that nobody reads, whose it is, and how long it is kept: in simulated time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from simulated_engine import CONTEXT
from simulated_server import simulate

from jitney.runtime import DynamicEngine, SamplingParams
from jitney.runtime.errors import QueueFull
from jitney.streaming.entry import Entry
from jitney.streaming.principal import ANONYMOUS, Principal
from jitney.streaming.protocols.delivery import CANCEL, FINISH, OnDisconnect
from jitney.streaming.protocols.errors import Refused
from jitney.streaming.protocols.generate import Generate
from jitney.streaming.registry import Registry

LONG = Generate(prompt="x", params=SamplingParams(ignore_eos=True, max_tokens=CONTEXT - 1, seed=1))
SHORT = Generate(prompt="x", params=SamplingParams(ignore_eos=True, max_tokens=3, seed=1))


def entry(name: str, policy: OnDisconnect = FINISH, principal: Principal = ANONYMOUS, **more: Any) -> Entry:
    return Entry(name, principal, policy, **more)


async def submitted(registry: Registry, answer: Entry, *generates: Generate) -> Entry:
    await registry.begin(registry.open(answer), generates)
    return answer


async def read_a_little(registry: Registry, answer: Entry) -> None:
    with registry.reading(answer):
        response = await answer.begun()
        assert response is not None
        while not response.log.last_seq:
            await response.log.news()


@pytest.mark.parametrize(("policy", "status"), [(CANCEL, "cancelled"), (FINISH, "length")])
def test_an_answer_without_readers(
    monkeypatch: pytest.MonkeyPatch, policy: OnDisconnect, status: str
) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        registry: Registry = app.state.service.registry
        answer = await submitted(registry, entry("a", policy), LONG)
        await read_a_little(registry, answer)
        await answer.over()
        assert answer.response is not None and answer.response.log.last.finish_reason == status

    simulate(monkeypatch, body)


def test_detached_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        registry: Registry = app.state.service.registry
        held = registry.open(entry("held", OnDisconnect("detach", 30)))
        with registry.reading(held):
            pass
        for _ in range(5):
            await asyncio.sleep(20)
            with registry.reading(held):
                await asyncio.sleep(40)
        assert not held.is_over, "somebody came back in time, each time"
        await asyncio.sleep(29)
        assert not held.is_over
        await asyncio.sleep(2)
        assert held.is_over and held.is_cancelled
        with pytest.raises(Refused):
            registry.find(ANONYMOUS, "held")
        await registry.begin(held, [LONG])
        assert held.response is not None and held.response.done, "cancelled before it began"

    simulate(monkeypatch, body)


def test_the_last_of_several_readers_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        registry: Registry = app.state.service.registry
        answer = registry.open(entry("a", CANCEL))
        with registry.reading(answer):
            with registry.reading(answer):
                pass
            assert not answer.is_over
        assert answer.is_cancelled

    simulate(monkeypatch, body)


def test_unread_answers_are_bounded_for_each_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        registry = Registry(app.state.service.submit, lambda: "m", max_detached=3)
        mine = [registry.open(entry(f"a{n}")) for n in range(5)]
        theirs = registry.open(entry("b", principal=Principal("b")))
        for answer in (*mine, theirs):
            with registry.reading(answer):
                pass
        assert [answer.is_cancelled for answer in mine] == [False] * 3 + [True] * 2
        assert not theirs.is_cancelled
        registry.cancel(ANONYMOUS, "a0")
        again = registry.open(entry("a9"))
        with registry.reading(again):
            pass
        assert not again.is_cancelled, "one that is over makes room"
        registry.cancel_all()
        assert theirs.is_cancelled and not registry._detached and not registry._entries

    simulate(monkeypatch, body)


def test_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = Principal("key", "ann"), Principal("key", "bob")

    async def body(engine: DynamicEngine, app: Any) -> None:
        registry: Registry = app.state.service.registry
        answer = await submitted(registry, entry("a", principal=ann, chat_id="chat"), SHORT)
        assert registry.find(Principal("key", "ann", instructions="x"), "a") is answer
        assert registry.latest(ann, "chat") is answer and registry.latest(bob, "chat") is None
        for stranger in (bob, ANONYMOUS, Principal("other", "ann")):
            with pytest.raises(Refused) as refused:
                registry.find(stranger, "a")
            assert refused.value.refusal.status == 404
        await answer.over()
        assert answer.response is not None and answer.response.forget()
        assert registry.latest(ann, "chat") is None
        for principal, status in ((ann, 409), (bob, 404)):
            with pytest.raises(Refused) as refused:
                registry.find(principal, "a")
            assert refused.value.refusal.status == status

    simulate(monkeypatch, body)


def test_a_newer_answer_of_a_chat_stays_when_an_older_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        registry: Registry = app.state.service.registry
        old = await submitted(registry, entry("old", chat_id="chat"), SHORT)
        new = await submitted(registry, entry("new", chat_id="chat"), SHORT)
        await old.over()
        registry.delete(ANONYMOUS, "old")
        assert registry.latest(ANONYMOUS, "chat") is new
        registry.delete(ANONYMOUS, "new")
        assert registry.latest(ANONYMOUS, "chat") is None
        await new.over()
        with pytest.raises(Refused) as refused:
            registry.find(ANONYMOUS, "new")
        assert refused.value.refusal.status == 404, "deleted is as if it had never been"

    simulate(monkeypatch, body)


def test_what_the_engine_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        registry: Registry = app.state.service.registry
        answer = entry("a")
        told = asyncio.ensure_future(answer.begun())
        with pytest.raises(QueueFull):
            await submitted(registry, answer, *[LONG] * 9)
        with pytest.raises(Refused) as refused:
            await told
        assert refused.value.refusal.status == 429
        assert answer.is_over and not registry._entries

    simulate(monkeypatch, body, max_rows=1, max_queued=2)


def test_a_cancel_while_it_is_being_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        service = app.state.service
        release = asyncio.Event()

        async def slowly(*args: Any) -> Any:
            await release.wait()
            return await service.submit(*args)

        registry = Registry(slowly, lambda: "m")
        answer = registry.open(entry("a"))
        beginning = asyncio.ensure_future(registry.begin(answer, [LONG]))
        await asyncio.sleep(1)
        registry.cancel(ANONYMOUS, "a")
        assert not answer.is_over, "the engine may still take it"
        release.set()
        await beginning
        assert answer.response is not None and answer.response.done
        assert registry.find(ANONYMOUS, "a") is answer, "it is kept like any other"

    simulate(monkeypatch, body)


def test_a_stillborn_answer_still_has_one_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        registry: Registry = app.state.service.registry
        answer = registry.open(entry("a"))
        registry.cancel(ANONYMOUS, "a")
        assert await answer.begun() is None
        event = answer.stillborn()
        assert (event.kind, event.finish_reason) == ("done", "cancelled")

    simulate(monkeypatch, body)


def test_ids_of_the_gone_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.streaming.registry.MAX_REMEMBERED", 3)

    async def body(engine: DynamicEngine, app: Any) -> None:
        registry: Registry = app.state.service.registry
        for number in range(5):
            answer = await submitted(registry, entry(str(number)), SHORT)
            await answer.over()
            assert answer.response is not None and answer.response.forget()
        assert list(registry._gone) == ["2", "3", "4"]

    simulate(monkeypatch, body)


def test_the_first_of_several_prompts_may_be_forgotten_before_the_last_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        async def slowly(generate: Generate, principal: Principal, name: str) -> Any:
            response = await app.state.service.submit(generate, principal, name)
            if name == "a-0":
                await asyncio.sleep(2 * engine.config.keep_finished_s)
                assert engine.response(name) is None
            return response

        registry = Registry(slowly, lambda: "m")
        answer = registry.open(entry("a"))
        await registry.begin(answer, [SHORT, SHORT])
        await answer.over()
        assert registry.find(ANONYMOUS, "a") is answer
        await asyncio.sleep(2 * engine.config.keep_finished_s)
        with pytest.raises(Refused, match="no longer kept"):
            registry.find(ANONYMOUS, "a")

    simulate(monkeypatch, body, keep_finished_s=60)


async def test_an_answer_that_the_engine_kept_for_no_time_is_gone_at_once() -> None:
    async def submit(generate: Generate, principal: Any, name: str) -> Any:
        return SimpleNamespace(id=name, done=True, is_forgotten=True, when_forgotten=None)

    registry = Registry(submit, lambda: "m")
    await submitted(registry, entry("a"), LONG)
    assert not registry._entries
    with pytest.raises(Refused) as refused:
        registry.find(ANONYMOUS, "a")
    assert refused.value.refusal.status == 409
