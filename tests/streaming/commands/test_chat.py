"""`jitney chat`, piped: only answers on standard output. And the conversation itself, over a recording engine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import Result

from jitney.runtime import Event, SamplingParams
from jitney.runtime.errors import ContextLengthExceeded, GenerationFailed, RequestError
from jitney.streaming.commands.chat import Conversation

Jitney = Callable[..., Result]


def test_piped_lines_are_answered_in_order(jitney: Jitney, script: Path) -> None:
    result = jitney("chat", "--scripted", script, input="The capital?\n\nWhy is the sky blue?\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Paris.\nRayleigh\nscattering.\n", "")


def test_no_lines_no_answers(jitney: Jitney, script: Path) -> None:
    result = jitney("chat", "--scripted", script, input="")
    assert (result.exit_code, result.stdout) == (0, "")


def test_an_answer_can_be_limited(jitney: Jitney, script: Path) -> None:
    result = jitney("chat", "--scripted", script, "--max-tokens", 3, input="The capital?\n")
    assert (result.exit_code, result.stdout) == (0, "Par\n")


def test_a_failing_answer_ends_a_pipe_with_status_2(jitney: Jitney, script: Path) -> None:
    result = jitney("chat", "--scripted", script, input="This is broken.\nThe capital?\n")
    assert result.exit_code == 2
    assert result.stderr == "jitney: the script failed this request\n"


@pytest.mark.parametrize("option", [("--temperature", "3"), ("--max-tokens", "0")])
def test_a_bad_option_is_refused_by_name(jitney: Jitney, script: Path, option: tuple[str, str]) -> None:
    result = jitney("chat", "--scripted", script, *option, input="The capital?\n")
    assert result.exit_code == 2
    assert option[0].strip("-").replace("-", "_") in result.stderr


class RecordingEngine:
    """Answers `answer N` or raises, and keeps the messages of every call."""

    def __init__(self, *faults: Exception | None) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self._faults = list(faults)

    async def stream(self, messages: list[dict[str, Any]], params: SamplingParams) -> AsyncIterator[Event]:
        self.asked.append(list(messages))
        fault = self._faults.pop(0) if self._faults else None
        if fault is not None:
            raise fault
        yield Event("r", 0, "delta", text="answer ")
        yield Event("r", 1, "finish", text=str(len(self.asked)))
        yield Event("r", 2, "done")


def talk(engine: RecordingEngine, *questions: str, system: str | None = None) -> None:
    with asyncio.Runner() as runner:
        conversation = Conversation(runner, cast(Any, engine), SamplingParams(), system)
        for question in questions:
            if question == "/new":
                conversation.clear()
            else:
                conversation.ask(question)


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages]


def test_the_conversation_is_kept_and_begun_anew() -> None:
    engine = RecordingEngine()
    talk(engine, "a", "b", "/new", "c", system="be brief")
    assert contents(engine.asked[1]) == ["be brief", "a", "answer 1", "b"]
    assert contents(engine.asked[2]) == ["be brief", "c"]
    assert [message["role"] for message in engine.asked[1]] == ["system", "user", "assistant", "user"]


def test_a_full_context_forgets_the_oldest_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    engine = RecordingEngine(None, None, ContextLengthExceeded("too long"))
    talk(engine, "a", "b", "c")
    assert contents(engine.asked[-1]) == ["b", "answer 2", "c"]
    assert "forgotten" in capsys.readouterr().err


def test_a_question_that_alone_is_too_long_is_refused_and_not_kept() -> None:
    engine = RecordingEngine(ContextLengthExceeded("too long"))
    with asyncio.Runner() as runner:
        conversation = Conversation(runner, cast(Any, engine), SamplingParams(), None)
        with pytest.raises(ContextLengthExceeded):
            conversation.ask("a")
        conversation.ask("b")
    assert contents(engine.asked[-1]) == ["b"]


def test_a_refused_question_leaves_the_conversation_as_it_was() -> None:
    engine = RecordingEngine(None, RequestError("no"))
    with asyncio.Runner() as runner:
        conversation = Conversation(runner, cast(Any, engine), SamplingParams(), None)
        conversation.ask("a")
        with pytest.raises(RequestError):
            conversation.ask("b")
        conversation.ask("c")
    assert contents(engine.asked[-1]) == ["a", "answer 1", "c"]


def test_an_answer_that_is_broken_off_is_kept_as_far_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    class InterruptedEngine(RecordingEngine):
        async def stream(
            self, messages: list[dict[str, Any]], params: SamplingParams
        ) -> AsyncIterator[Event]:
            async for event in super().stream(messages, params):
                yield event
                if len(self.asked) == 1:
                    signal.raise_signal(signal.SIGINT)
                    await asyncio.Event().wait()

    engine = InterruptedEngine()
    with asyncio.Runner() as runner:
        conversation = Conversation(runner, cast(Any, engine), SamplingParams(), None)
        with pytest.raises(KeyboardInterrupt):
            conversation.ask("a")
        conversation.ask("b")
    assert contents(engine.asked[-1]) == ["a", "answer ", "b"]
    assert capsys.readouterr().out == "answer \nanswer 2\n"


def test_a_fault_in_the_stream_is_an_error() -> None:
    class FaultyEngine(RecordingEngine):
        async def stream(
            self, messages: list[dict[str, Any]], params: SamplingParams
        ) -> AsyncIterator[Event]:
            yield Event("r", 0, "done", finish_reason="error", error="out of luck")

    with pytest.raises(GenerationFailed, match="out of luck"):
        talk(FaultyEngine(), "a")
