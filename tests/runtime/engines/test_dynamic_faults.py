"""Faults on the loop's side: they end one request, or hold nobody up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from jitney.runtime import DynamicEngine, EngineClosed, SamplingParams
from jitney.runtime.backend import Backend, Detokenizer
from jitney.runtime.engines import dynamic
from jitney.runtime.testing import ByteTokenizer, Reply, Script, ScriptedBackend


class Panic(BaseException):
    """What a tokenizer library's panic looks like."""


class Panicking:
    def push(self, token_ids: Sequence[int]) -> str:
        raise Panic("broken")

    def flush(self) -> str:
        raise Panic("broken")


class PanickingTokenizer(ByteTokenizer):
    """Every second detokenizer is broken."""

    made = 0

    def detokenizer(
        self, *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> Detokenizer:
        self.made += 1
        return Panicking() if self.made == 2 else super().detokenizer()


async def test_a_broken_detokenizer_ends_its_own_request_and_no_other() -> None:
    backend = ScriptedBackend(Script(reply=[Reply(text="hello")]))
    backend.tokenizer = PanickingTokenizer()
    async with DynamicEngine(backend) as engine:
        async with asyncio.timeout(60):
            answers = await engine.generate(["a", "b", "c"], SamplingParams(max_tokens=4))
        assert [answer["finish_reason"] for answer in answers].count("error") == 1
        failed = next(answer for answer in answers if answer["error"])
        assert "Panic: broken" in failed["error"]
        assert all(answer["text"] == "hell" for answer in answers if answer is not failed)
        assert (await engine.generate("d", SamplingParams(max_tokens=2)))[0]["text"] == "he"


async def test_closing_while_the_model_is_looked_up_does_not_hold_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking, found = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(model: object, *, random_weights: bool) -> Backend:
        loop.call_soon_threadsafe(looking.set)
        assert found.wait(60)
        return ScriptedBackend()

    monkeypatch.setattr(dynamic, "resolve", slow)
    engine = DynamicEngine("slow")
    starting = asyncio.ensure_future(engine.start())
    await looking.wait()
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0)
    assert not closing.done(), "the loop runs on while the lookup does"
    found.set()
    await closing
    with pytest.raises(EngineClosed):
        await starting


async def test_a_vanishing_temperature_is_greedy() -> None:
    backend = ScriptedBackend()
    async with DynamicEngine(backend) as engine:
        params = SamplingParams(temperature=1e-50, max_tokens=1)
        request = await engine.intake.accept("x", params, dynamic.Options())
        assert request.sampling.temperature == 0.0
