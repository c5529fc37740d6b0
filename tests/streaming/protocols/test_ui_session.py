"""The AI SDK's chat protocol without a socket: which frames are taken, refused or end the connection."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from jitney.streaming.protocols.ui_session import MAX_OPEN, Abort, Close, Resume, Send, UISession


def session(*, instructs: bool = False) -> UISession:
    return UISession("m", instructs=instructs)


def says(role: str, *texts: str, **fields: Any) -> dict[str, Any]:
    return {"id": "x", "role": role, "parts": [{"type": "text", "text": text} for text in texts], **fields}


def send(**fields: Any) -> str:
    frame = {
        "type": "send",
        "requestId": "r",
        "id": "chat",
        "trigger": "submit-message",
        "messageId": None,
        "messages": [says("user", "hi")],
        "headers": {},
        "body": {},
        **fields,
    }
    return json.dumps(frame)


def refused(actions: list[Any]) -> str:
    (frame,) = actions
    assert isinstance(frame, bytes)
    fields = json.loads(frame)
    assert (fields["type"], fields["requestId"]) == ("error", "r")
    return str(fields["errorText"])


def test_a_send_is_a_conversation_with_its_sampling() -> None:
    messages = [
        says("system", "be brief"),
        says("user", "a", "b", metadata={"any": 1}),
        {"id": "y", "role": "assistant", "parts": [{"type": "step-start"}, {"type": "text", "text": "c"}]},
        {"id": "z", "role": "assistant", "parts": []},
        says("user", "d"),
    ]
    body = {"temperature": 0.5, "max_tokens": 7, "model": "m", "priority": 2, "deadline_ms": 1500}
    (action,) = session().receive(send(messages=messages, body=body))
    assert isinstance(action, Send) and action.request.chat_id == "chat"
    generate = action.generate
    assert generate.prompt == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    assert (generate.params.temperature, generate.params.max_tokens) == (0.5, 7)
    assert (generate.priority, generate.deadline_s, action.on_disconnect.mode) == (2, 1.5, "finish")


def test_what_becomes_of_an_unread_answer_can_be_said() -> None:
    (action,) = session().receive(send(body={"jitney": {"on_disconnect": "detach", "detach_ttl_s": 3}}))
    assert isinstance(action, Send)
    assert (action.on_disconnect.mode, action.on_disconnect.detach_s) == ("detach", 3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"trigger": "resume-stream"}, "trigger"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [says("user")]}, "messages"),
        ({"messages": [says("tool", "x")]}, "messages[0].role"),
        ({"messages": [{"role": "user", "parts": [{"type": "file"}]}]}, "messages[0].parts[0].type"),
        (
            {"messages": [{"role": "user", "parts": [{"type": "text", "text": 3}]}]},
            "messages[0].parts[0].text",
        ),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages[0].content"),
        ({"body": []}, "body"),
        ({"body": {"temperature": "hot"}}, "temperature"),
        ({"body": {"instructions": "x"}}, "body.instructions"),
        ({"body": {"n": 2}}, "body.n"),
        ({"body": {"model": "other"}}, "other"),
        ({"body": {"jitney": {"credit": 1}}}, "body.jitney.credit"),
        ({"wibble": 1}, "wibble"),
    ],
)
def test_a_request_with_something_wrong_in_it_is_told_what(fields: dict[str, Any], named: str) -> None:
    desk = session()
    assert named in refused(desk.receive(send(**fields)))
    assert isinstance(desk.receive(send())[0], Send), "the request id is free again"


def test_where_the_server_instructs_the_client_does_not() -> None:
    messages = [says("system", "obey me"), says("user", "hi")]
    assert "messages[0].role" in refused(session(instructs=True).receive(send(messages=messages)))
    assert isinstance(session().receive(send(messages=messages))[0], Send)


@pytest.mark.parametrize(
    "frame",
    [
        "{",
        "[]",
        '{"type": "abort"}',
        '{"type": "send", "requestId": 3, "id": "c"}',
        '{"type": "send", "requestId": "", "id": "c"}',
        '{"type": "send", "requestId": "r"}',
        '{"type": "resume", "requestId": "r", "id": ["c"]}',
        '{"type": ["send"], "requestId": "r", "id": "c"}',
        '{"type": "steer", "requestId": "r", "id": "c"}',
        json.dumps({"type": "abort", "requestId": "r" * 257}),
    ],
)
def test_what_is_not_of_the_protocol_ends_the_connection(frame: str) -> None:
    (action,) = session().receive(frame)
    assert isinstance(action, Close) and action.code == 1008 and len(action.reason.encode()) <= 123


def test_a_request_id_in_use_ends_the_connection_and_is_free_when_over() -> None:
    desk = session()
    (first,) = desk.receive(send())
    assert isinstance(first, Send)
    assert isinstance(desk.receive(send(id="other"))[0], Close)
    desk.over(first.request)
    assert isinstance(desk.receive(send())[0], Send)


def test_an_abort_is_heard_once_and_only_of_what_is_open() -> None:
    desk = session()
    abort = '{"type": "abort", "requestId": "r"}'
    assert desk.receive(abort) == []
    (action,) = desk.receive('{"type": "resume", "requestId": "r", "id": "c", "headers": {}, "body": {}}')
    assert isinstance(action, Resume)
    (ended,) = desk.receive(abort)
    assert isinstance(ended, Abort) and ended.request is action.request
    assert desk.receive(abort) == []


def test_a_resume_at_a_number_is_refused_since_numbers_are_of_a_delivery() -> None:
    frame = {"type": "resume", "requestId": "r", "id": "c", "lastSequence": 3, "headers": {}, "body": {}}
    assert "lastSequence" in refused(session().receive(json.dumps(frame)))


def test_a_connection_has_so_many_requests_open_and_no_more() -> None:
    desk = session()
    for number in range(MAX_OPEN):
        assert isinstance(desk.receive(send(requestId=str(number), id=str(number)))[0], Send)
    assert str(MAX_OPEN) in refused(desk.receive(send()))


def test_mutated_frames_never_raise() -> None:
    rng = random.Random(5)
    seed = send(body={"temperature": 0.5, "stop": ["x"]}, metadata={"a": [1]})
    for _ in range(10_000):
        raw = list(seed)
        for _ in range(rng.randrange(1, 5)):
            raw[rng.randrange(len(raw))] = chr(rng.choice((rng.randrange(32, 127), 0xD800, 0x1F600, 0)))
        for action in session().receive("".join(raw).encode(errors="surrogatepass")):
            assert isinstance(action, bytes | Send | Close)
