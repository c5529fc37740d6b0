"""Log lines: text or JSON, with the request's id, one usage line an answer, and never what anybody said."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jitney.streaming.logs import JSONFormat, TextFormat, request_id

SECRETS = ("sky", "Rayleigh", "secret", "scattering", "pirate")
BODY = {"messages": [{"role": "system", "content": "pirate"}, {"role": "user", "content": "sky"}]}


class Lines(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(params=[TextFormat, JSONFormat])
def lines(request: Any) -> Iterator[Lines]:
    handler, root = Lines(request.param()), logging.getLogger()
    former = root.level, logging.getLogger("jitney").level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.getLogger("jitney").setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(former[0])
    logging.getLogger("jitney").setLevel(former[1])


async def test_one_usage_line_an_answer_and_no_secret_anywhere(serving: Any, lines: Lines) -> None:
    async with serving(api_key="secret") as served:
        headers = {"authorization": "Bearer secret"}
        async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=60) as client:
            answer = await client.post("/v1/chat/completions?token=secret", json=BODY)
            await client.post("/v1/chat/completions", json={**BODY, "temperature": "pirate"})
            await client.get("/v1/models", headers={"authorization": "Bearer wrong-secret"})
        await served.until_idle()
    usage = [line for line in lines.lines if "prompt_tokens" in line]
    assert len(usage) == 1
    name = answer.headers["x-request-id"]
    assert name in usage[0] and "stop_token" in usage[0] and "default" in usage[0]
    if isinstance(lines.formatter, JSONFormat):
        fields = [json.loads(line) for line in lines.lines]
        line = next(line for line in fields if line["logger"] == "jitney.usage")
        assert line["request"] == name and line["completion_tokens"] == 21 and line["level"] == "info"
    ours = [line for line in lines.lines if "httpx" not in line and "httpcore" not in line]
    assert not [line for line in ours for secret in SECRETS if secret in line]


def test_a_failure_is_one_json_line() -> None:
    handler = Lines(JSONFormat())
    logger = logging.getLogger("jitney.test")
    logger.addHandler(handler)
    token = request_id.set("req_1")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it broke: %s", "a\nb")
    finally:
        request_id.reset(token)
        logger.removeHandler(handler)
    line = json.loads(handler.lines[0])
    assert "\n" not in handler.lines[0]
    assert line["message"] == "it broke: a\nb" and line["request"] == "req_1"
    assert re.search("ValueError: two\nlines$", line["error"])


def test_text_lines_name_their_request() -> None:
    record = logging.LogRecord("jitney", logging.INFO, "", 0, "hello", None, None)
    assert re.fullmatch(r"\S+ \S+ INFO jitney: hello", TextFormat().format(record))
    token = request_id.set("req_1")
    assert TextFormat().format(record).endswith("INFO jitney [req_1]: hello")
    request_id.reset(token)
