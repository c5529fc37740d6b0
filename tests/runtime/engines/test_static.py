"""The blocking engine: the same answers, from any thread, with one fallback and no residue."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest
from scripted import backend, check_story, text_of
from scripted_padded import BrokenBackend, PagelessBackend

from jitney.runtime import EngineConfig, MCoreEngine, SamplingParams, StaticEngine
from jitney.runtime.engines.abstract import AbstractEngine
from jitney.runtime.errors import (
    CannotServe,
    ContextLengthExceeded,
    EngineClosed,
    EngineDied,
    InvalidField,
    ModelError,
)
from jitney.runtime.testing import Reply, Script, ScriptedBackend
from jitney.runtime.testing.byte_tokenizer import ByteTokenizer


def static(**config: Any) -> StaticEngine:
    return StaticEngine(backend(), EngineConfig(**config))


def test_the_name_that_megatrons_users_know() -> None:
    assert MCoreEngine is StaticEngine and issubclass(StaticEngine, AbstractEngine)


def test_generate_and_stream() -> None:
    with static() as engine:
        answers = engine.generate(["hello", "é😀"], SamplingParams(max_tokens=20))
        assert [answer["text"] for answer in answers] == ["hello", "é😀"]
        events = list(engine.stream("endless"))
        check_story(events)
        assert text_of(events) == "endless " * 400
        assert engine.generate([]) == []
        assert engine.stats().state == "ready"


def test_options_go_with_a_call() -> None:
    with static() as engine:
        (answer,) = engine.generate("hello", response_id="mine", user="u", deadline_s=100)
        assert answer["id"] == "mine"
        (answer,) = engine.generate("hold", deadline_s=0.01)
        assert answer["finish_reason"] == "deadline"
        (answer,) = engine.generate("hello", num_tokens_to_generate=2, response_id="theirs")
        assert (answer["id"], answer["text"]) == ("theirs", "he")
        with pytest.raises(InvalidField, match="deadline_s"):
            engine.generate("hello", deadline_s=0)


def test_how_a_prompt_is_encoded_goes_with_megatrons_fields_too() -> None:
    told: list[Any] = []

    class Noting(ByteTokenizer):
        def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
            told.append(add_bos)
            return super().encode(text, add_bos=add_bos)

        def encode_chat(self, messages: Any, *, template_options: dict[str, Any] | None = None) -> list[int]:
            told.append(template_options)
            return super().encode_chat(messages, template_options=template_options)

    backend = ScriptedBackend(Script(reply=[Reply(text="hello")]))
    backend.tokenizer = Noting()
    with StaticEngine(backend) as engine:
        for fields in ({}, {"num_tokens_to_generate": 2}):
            engine.generate("hello", add_bos=False, **fields)
            engine.generate([{"role": "user", "content": "x"}], template_options={"a": 1}, **fields)
        engine.generate("hello", add_BOS=True)
    assert told == [False, {"a": 1}, True] * 2 + [True]  # a chat is encoded after its template


def test_breaking_out_of_a_stream_gives_the_seat_back() -> None:
    with static(max_rows=1) as engine:
        for event in engine.stream("first"):
            assert event.text == "f"
            break
        assert engine.generate("hello")[0]["text"] == "hello"
        assert engine.stats().running == 0 and engine.stats().finished["cancelled"] == 1


def test_cancelled_from_another_thread() -> None:
    with static() as engine:
        stream = engine.stream("first", response_id="mine")
        next(stream)
        told: list[bool] = []
        thread = threading.Thread(target=lambda: told.append(engine.cancel("mine")))
        thread.start()
        thread.join(60)
        assert told == [True] and not engine.cancel("mine")
        assert list(stream)[-1].finish_reason == "cancelled"


def test_many_threads_at_once() -> None:
    with static() as engine:
        told: dict[int, str] = {}

        def ask(number: int) -> None:
            told[number] = engine.generate(f"thread {number}")[0]["text"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert told == {number: f"thread {number}" for number in range(12)}


async def test_inside_a_running_loop_and_in_its_worker_threads() -> None:
    with static() as engine:
        assert engine.generate("here")[0]["text"] == "here"
        told = await asyncio.gather(*(asyncio.to_thread(engine.generate, f"{n}") for n in range(4)))
        assert [answers[0]["text"] for answers in told] == ["0", "1", "2", "3"]


def test_closing_twice_ends_streams_and_threads() -> None:
    before = threading.active_count()
    engine = static()
    stream = engine.stream("first")
    next(stream)
    engine.close()
    engine.close()
    assert threading.active_count() == before
    with pytest.raises(EngineClosed):
        list(stream)
    with pytest.raises(EngineClosed):
        engine.generate("x")
    with pytest.raises(EngineClosed):
        next(engine.stream("x"))
    assert engine.stats().state == "closed"


def test_a_reader_in_another_thread_is_told_of_the_close() -> None:
    engine = static()
    reached, told = threading.Event(), []

    def read() -> None:
        try:
            for event in engine.stream("first"):
                reached.set()
                told.append(event.finish_reason)
        except EngineClosed:
            told.append("refused")

    reader = threading.Thread(target=read)
    reader.start()
    assert reached.wait(60)
    engine.close()
    reader.join(60)
    assert told[-1] in ("cancelled", "refused") and not reader.is_alive()


def test_draining() -> None:
    with static() as engine:
        assert engine.drain()
        with pytest.raises(EngineClosed, match="draining"):
            engine.generate("x")


def test_errors_reach_the_caller() -> None:
    with static() as engine:
        with pytest.raises(InvalidField, match="prompt"):
            engine.generate(5)  # type: ignore[arg-type]
        with pytest.raises(ContextLengthExceeded):
            engine.generate("x" * 5000)
        assert engine.generate("death")[0]["finish_reason"] == "error"
        with pytest.raises(EngineDied):
            engine.generate("x")
        with pytest.raises(EngineDied):
            next(engine.stream("x"))


@pytest.mark.parametrize(
    "error",
    [ModelError("config.json: no"), MemoryError("no"), RuntimeError("no"), InvalidField("dtype", "a", "b")],
)
def test_only_cannot_serve_falls_back(error: Exception) -> None:
    before = threading.active_count()
    with pytest.raises(type(error)):
        StaticEngine(PagelessBackend(error=error))
    assert threading.active_count() == before


def test_cannot_serve_falls_back_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    made = PagelessBackend()
    with caplog.at_level(logging.WARNING, "jitney"), StaticEngine(made) as engine:
        assert [answer["text"] for answer in engine.generate(["hello", "a"])] == ["hello", "a"]
        assert text_of(list(engine.stream("hello"))) == "hello"
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "no paged attention" in warnings[0].getMessage()
    assert made.padded.is_closed


def test_no_room_for_a_pool_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    with StaticEngine(backend(), EngineConfig(kv_cache_bytes=16)) as engine:
        assert engine.generate("hello")[0]["text"] == "hello"
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "pages given" in caplog.text


def test_legacy_never_opens_pages(caplog: pytest.LogCaptureFixture) -> None:
    made = PagelessBackend(error=CannotServe("must not be asked"))
    with StaticEngine(made, legacy=True) as engine:
        assert engine.generate("hello")[0]["text"] == "hello"
        assert made.padded.runs == [1]
    assert not caplog.records


def test_a_fallback_that_fails_too_says_so() -> None:
    before = threading.active_count()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        StaticEngine(BrokenBackend())
    assert threading.active_count() == before


@pytest.mark.parametrize("legacy", [False, True])
def test_a_script_that_forgets_to_close_still_ends(legacy: bool) -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from jitney.runtime import StaticEngine
from scripted_padded import PagelessBackend
from scripted import backend
engine = StaticEngine(PagelessBackend() if {legacy} else backend(), legacy={legacy})
stream = engine.stream("first")
next(stream)
print(engine.generate("hello")[0]["text"])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "hello", "")


def test_megatrons_fields_end_to_end() -> None:
    with StaticEngine(backend()) as engine:
        (answer,) = engine.generate(
            ["hello"],
            num_tokens_to_generate=3,
            return_log_probs=True,
            top_n_logprobs=2,
            return_segments=True,
            return_prompt_tokens=True,
            top_k=1,
        )
        assert (answer["text"], answer["segments"], answer["prompt"]) == ("hel", ["h", "e", "l"], "hello")
        assert answer["prompt_tokens"] == list(b"hello")
        assert [len(entry["top"]) for entry in answer["choices"][0]["logprobs"]] == [2, 2, 2]
        assert [s and s["token_id"] for s in answer["prompt_logprobs"]] == [None, *b"ello"]
        (answer,) = engine.generate(["hello"], {"num_tokens_total": 7})
        assert answer["text"] == "he"
        (answer,) = engine.generate("hello", termination_id=ord("o"))
        assert (answer["text"], answer["finish_reason"]) == ("hell", "stop_token")
        (answer,) = engine.generate("hello", stop_words=["ll"], detokenize_stop_sequence=True)
        assert answer["text"] == "hell"
        (answer,) = engine.generate([[{"role": "user", "content": "hi"}]], num_tokens_to_generate=5)
        assert answer["text"] == "hi"


@pytest.mark.parametrize(
    ("prompts", "fields", "named"),
    [
        ("hello", {"num_tokens_total": 5}, "num_tokens_total"),
        ("hello", {"best_of": 2}, "best_of"),
        ("hello", {"add_BOS": "yes"}, "add_BOS"),
        ([1, 2], {"add_BOS": True}, "add_BOS"),
        ([[1, "a", 2]], {"top_k": 1}, "prompt"),
        ([5.0], {"top_k": 1}, "prompt"),
        (5, {"top_k": 1}, "prompts"),
        ("\ud800", {"top_k": 1}, "prompt"),
        ([True], {"top_k": 1}, "prompt"),
    ],
)
def test_bad_fields_and_prompts_are_refused_by_name(prompts: Any, fields: dict[str, Any], named: str) -> None:
    with static() as engine:
        with pytest.raises(InvalidField) as refused:
            engine.generate(prompts, **fields)
        assert refused.value.field == named


def test_our_parameters_and_megatrons_do_not_mix() -> None:
    with static() as engine, pytest.raises(InvalidField, match="not both"):
        engine.generate("hello", SamplingParams(), top_k=1)
