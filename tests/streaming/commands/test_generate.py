"""`jitney generate`: in order, resumable, a bad line stays one bad line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from jitney.runtime.errors import RequestError
from jitney.streaming.commands import generate
from jitney.streaming.commands.jsonl import read_request, requests, take_up

Jitney = Callable[..., Result]


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twenty numbered requests; the script echoes a prompt that it does not know."""
    path = tmp_path / "in.jsonl"
    path.write_text(lines(*({"prompt": f"number {i}", "id": i} for i in range(20))))
    return path


def expected(count: int = 20) -> list[tuple[int, str]]:
    return [(i, f"number {i}") for i in range(count)]


def told(path: Path) -> list[tuple[int, str]]:
    return [(result["id"], result["text"]) for result in results(path)]


def test_results_come_in_the_order_of_the_input(
    jitney: Jitney, script: Path, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    result = jitney("generate", source, target, "--scripted", script, "--max-rows", 3)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert told(target) == expected()


def test_prompts_messages_and_sampling_fields(jitney: Jitney, script: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    messages = [{"role": "user", "content": "The capital?"}]
    source.write_text(
        lines(
            {"messages": messages},
            {"prompt": "The capital?", "max_tokens": 2, "n": 2},
            {"prompt": [104, 105]},
        )
    )
    assert jitney("generate", source, target, "--scripted", script).exit_code == 0
    first, second, third = results(target)
    assert first["text"] == "Paris." and first["finish_reason"] == "stop_token" and "choices" not in first
    assert first["usage"]["completion_tokens"] == 7
    assert [choice["text"] for choice in second["choices"]] == ["Pa", "Pa"]
    assert third["text"] == "hi"


def test_a_bad_line_gives_an_error_line_and_status_1(jitney: Jitney, script: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bad: list[Any] = [
        "text",
        {},
        {"prompt": "a", "messages": []},
        {"prompt": 1},
        {"prompt": "a", "temperature": 3},
        {"prompt": "a", "temprature": 1},
        {"prompt": "a", "max_tokens": "many"},
        {"messages": "hello"},
        {"prompt": "x" * 5000},
        {"prompt": "This is broken.", "id": "mine"},
    ]
    source.write_text(lines(*bad) + "not json\n" + "\n" + lines({"prompt": "The capital?"}))
    result = jitney("generate", source, target, "--scripted", script)
    assert result.exit_code == 1
    assert result.stderr == "11 of 12 requests failed; their lines say why.\n"
    *failed, last = results(target)
    assert len(failed) == 11 and all("text" not in line for line in failed)
    named = [
        "JSON object",
        "prompt",
        "prompt",
        "prompt",
        "temperature",
        "temprature",
        "max_tokens",
        "messages",
    ]
    assert all(name in line["error"] for name, line in zip(named, failed, strict=False))
    assert failed[9]["id"] == "mine"
    assert last["text"] == "Paris."


@pytest.mark.parametrize("kept_bytes", [0, 1, 100, 137, 500, 10_000])
def test_a_run_that_was_broken_off_goes_on(
    jitney: Jitney, script: Path, source: Path, tmp_path: Path, kept_bytes: int
) -> None:
    target = tmp_path / "out.jsonl"
    jitney("generate", source, target, "--scripted", script)
    whole = target.read_bytes()
    target.write_bytes(whole[:kept_bytes])
    assert jitney("generate", source, target, "--scripted", script).exit_code == 0
    assert target.read_bytes() == whole


def test_what_is_done_is_not_done_again(
    jitney: Jitney, script: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text(lines(*({"id": i, "text": f"number {i}"} for i in range(17)), {"error": "old"}))
    read: list[bytes] = []

    def counting(line: bytes) -> Any:
        read.append(line)
        return read_request(line)

    monkeypatch.setattr(generate, "read_request", counting)
    result = jitney("generate", source, target, "--scripted", script)
    assert len(read) == 2
    assert result.exit_code == 1, "an error line of the earlier run still counts"
    assert len(results(target)) == 20


def test_the_engine_dying_is_not_taken_for_an_answer(jitney: Jitney, script: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines({"prompt": "The capital?"}, {"prompt": "deadly"}, {"prompt": "The capital?"}))
    result = jitney("generate", source, target, "--scripted", script, "--max-rows", 1)
    assert result.exit_code == 2 and "died" in result.stderr
    assert all("error" not in line for line in results(target))


def test_an_output_that_is_something_else_is_left_alone(
    jitney: Jitney, script: Path, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("Notes.\nMore notes.\n")
    result = jitney("generate", source, target, "--scripted", script)
    assert result.exit_code == 2 and f"{target}, line 1" in result.stderr
    assert target.read_text() == "Notes.\nMore notes.\n"
    assert jitney("generate", source, source, "--scripted", script).exit_code == 2
    for foreign in ("my only copy", '{"prompt": "a request, and no result"}', '{"text": "a"}\nand a note'):
        target.write_text(foreign)
        result = jitney("generate", source, target, "--scripted", script)
        assert result.exit_code == 2 and "expected a result of an earlier run" in result.stderr
        assert target.read_text() == foreign
    target.write_text(lines(*({"text": ""} for _ in range(21))))
    result = jitney("generate", source, target, "--scripted", script)
    assert result.exit_code == 2 and "21 results" in result.stderr and "20 requests" in result.stderr


def test_an_output_that_cannot_be_written_is_one_line(
    jitney: Jitney, script: Path, source: Path, tmp_path: Path
) -> None:
    result = jitney("generate", source, tmp_path / "no" / "such.jsonl", "--scripted", script)
    assert result.exit_code == 2 and result.stderr.strip().startswith("jitney: ")
    assert "such.jsonl" in result.stderr and "Traceback" not in result.stderr


async def test_lines_are_read_only_as_they_are_sent_off() -> None:
    class Engine:
        async def generate(self, prompts: list[Any], params: Any) -> list[dict[str, Any]]:
            return [{"error": None, "text": prompts[0], "finish_reason": "length", "usage": {}}]

    num_read = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_read
        while True:
            num_read += 1
            yield b'{"prompt": "a"}'

    running = generate._results(Engine(), endless(), num_in_flight=4)  # type: ignore[arg-type]
    for _ in range(10):
        assert (await anext(running))["text"] == "a"
    assert num_read <= 10 + 4
    await running.aclose()


def test_reading_and_taking_up(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert take_up(path).num_lines == 0 and not path.exists()
    path.write_bytes(b'{"prompt": "a"}\n\n  \n{"prompt": "b"}')
    assert list(requests(path)) == [b'{"prompt": "a"}\n', b'{"prompt": "b"}']
    assert list(requests(path, skip=1)) == [b'{"prompt": "b"}']
    request = read_request(b'{"prompt": "a", "logit_bias": {"7": 1.5}, "stop": ["x"]}')
    assert request.params.logit_bias == {7: 1.5} and request.params.stops == ("x",) and request.id is None
    with pytest.raises(RequestError, match="line: expected valid JSON"):
        read_request(b"\xff\n")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (b'"temperature": NaN', "temperature: expected a finite number, got nan (float)"),
        (b'"max_tokens": "many"', "max_tokens: expected `int | null`, got `str`"),
        (b'"bad": 1', "unknown field: 'bad'; expected one of id, prompt, messages, temperature, "),
    ],
)
def test_a_bad_field_is_named(field: bytes, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_request(b'{"prompt": "a", ' + field + b"}\n")
    assert str(refused.value).startswith(message)


def test_a_wide_batch_fits_the_queue(jitney: Jitney, script: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines(*({"prompt": "The sky", "max_tokens": 1} for _ in range(2100))))
    assert jitney("generate", source, target, "--scripted", script, "--max-rows", 1050).exit_code == 0
    assert [result["text"] for result in results(target)] == ["R"] * 2100
