"""`jitney chat --url`: the same conversation, held with a server."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from jitney.runtime.testing import Reply

MAIN = "from jitney.streaming.cli import main; main()"


async def start(url: str, *arguments: str) -> Process:
    command = [sys.executable, "-c", MAIN, "chat", "--url", url, *arguments]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)


async def ask(url: str, questions: str, *arguments: str) -> tuple[int | None, str, str]:
    chat = await start(url, *arguments)
    answers, complaints = await chat.communicate(questions.encode())
    return chat.returncode, answers.decode(), complaints.decode()


async def test_piped_lines_are_answered_in_order(serving: Any) -> None:
    async with serving() as served:
        result = await ask(served.url, "Why is the sky blue?\nhello\n", "--max-tokens", "30")
    assert result == (0, "Rayleigh scattering.\nhello\n", "")


async def test_a_key_and_a_model(serving: Any) -> None:
    async with serving(api_key="secret", served_model_name="m") as served:
        assert (await ask(served.url, "sky\n", "--api-key", "secret", "m"))[0] == 0
        status, _, complaint = await ask(served.url, "sky\n", "--api-key", "wrong")
        assert status == 2 and "refused with 401" in complaint
        status, _, complaint = await ask(served.url, "sky\n", "--api-key", "secret", "other")
        assert status == 2 and "'other' is not served here; served: 'm'" in complaint


async def test_a_full_context_forgets_the_oldest_exchange(serving: Any) -> None:
    async with serving(Reply(match="", text="x " * 900)) as served:
        status, answers, complaint = await ask(
            served.url, f"{'a' * 3000}\n{'b' * 3000}\nc\n", "--max-tokens", "2000"
        )
    assert status == 0 and len(answers.splitlines()) == 3 and "forgotten" in complaint


async def test_an_interrupt_ends_the_answer_on_the_server(serving: Any) -> None:
    async with serving() as served:
        chat = await start(served.url)
        assert chat.stdin is not None and chat.stdout is not None
        chat.stdin.write(b"slow\n")
        assert await chat.stdout.read(5)
        chat.send_signal(signal.SIGINT)
        await chat.communicate()
        await served.until_idle()
        assert served.engine.stats().finished == {"cancelled": 1}


def test_nobody_there(jitney: Callable[..., Result]) -> None:
    result = jitney("chat", "--url", "http://127.0.0.1:9", input="hello\n")
    assert result.exit_code == 2 and "http://127.0.0.1:9" in result.stderr


@pytest.mark.parametrize("option", [("--quantize", "int8"), ("--dtype", "float32")])
def test_how_a_model_is_run_is_the_servers_business(
    jitney: Callable[..., Result], option: tuple[str, str]
) -> None:
    result = jitney("chat", "--url", "http://127.0.0.1:9", *option)
    assert result.exit_code == 2 and "--url" in result.stderr
