"""Scripts: replies by what the prompt holds, delays by a clock that can be turned, faults, and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from jitney.runtime import DynamicEngine, EngineConfig
from jitney.runtime.errors import CannotServe, ModelError
from jitney.runtime.testing import Reply, Script, ScriptedBackend


def answer_of(script: Script, prompt: str) -> str:
    return script.find(prompt).text


def test_the_first_reply_that_matches_and_else_an_echo() -> None:
    script = Script(reply=[Reply(match="sky", text="blue"), Reply(match="sk", text="other")])
    assert [answer_of(script, prompt) for prompt in ("the sky", "ask", "hello")] == ["blue", "other", "hello"]
    assert answer_of(Script(reply=[Reply(text="always")]), "anything") == "always"


async def test_the_last_user_message_is_what_is_matched() -> None:
    script = Script(reply=[Reply(match="first", text="wrong"), Reply(match="second", text="right")])
    async with DynamicEngine(ScriptedBackend(script)) as engine:
        messages = [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "wrong"},
            {"role": "user", "content": "second"},
        ]
        assert (await engine.generate([messages]))[0]["text"] == "right"


async def test_delays_follow_the_clock_that_is_given() -> None:
    now = [0.0]
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += seconds

    script = Script(reply=[Reply(match="slow", text="abc", first_token_s=1.0, token_s=0.1)])
    backend = ScriptedBackend(script, clock=lambda: now[0], sleep=sleep)
    async with DynamicEngine(backend) as engine:
        (answer,) = await engine.generate("slow")
    assert answer["text"] == "abc" and now[0] == pytest.approx(1.3) and max(naps) <= 0.005


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "script.toml"
    path.write_text(
        'name = "n"\nmax_rows = 2\n[[reply]]\nmatch = "é"\ntext = "t"\nfail_after = 0\nfault = "step"\n'
    )
    backend = ScriptedBackend.from_file(path)
    assert backend.name == "n" and backend.script.reply == [
        Reply(match="é", text="t", fail_after=0, fault="step")
    ]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"name = ", "script.toml"),
        (b"\xff\xfe", "script.toml"),
        (b"replies = []", "replies"),
        (b"context_length = 'x'", "context_length"),
        (b"context_length = 0", "context_length"),
        (b"max_rows = 0", "max_rows"),
        (b"max_rows = -1", "max_rows"),
        (b"[[reply]]\nfault = 'all'", "fault"),
        (b"[[reply]]\ntoken_s = -1.0", "token_s"),
        (b"[[reply]]\nfirst_token_s = -1.0", "first_token_s"),
        (b"[[reply]]\nfail_after = -1", "fail_after"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_field(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "script.toml"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=named):
        ScriptedBackend.from_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.toml"):
        ScriptedBackend.from_file(tmp_path / "nowhere.toml")


async def test_a_pool_too_small_for_one_context_is_refused_with_the_figures() -> None:
    with pytest.raises(CannotServe, match="4 pages given, 5 needed for one context of 64"):
        await DynamicEngine(
            ScriptedBackend(Script(context_length=64)), EngineConfig(kv_cache_bytes=64)
        ).start()
